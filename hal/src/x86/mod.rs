//! The traits on real x86-64 hardware.
//!
//! Everything here runs at CPL 0, except [`NativeCpuid`] and [`TscClock`], which run anywhere.
//!
//! Values of these types are promises: each `unsafe` constructor lists what its caller vouches for,
//! for as long as the value is used, and after that the methods are safe. That matters most for
//! [`CurrentVmcs`] and [`Msrs`]. What is written through them tells the processor which memory to
//! touch, so whoever builds one vouches for the code that it is lent to.
//!
//! This module is the only one in the crate that may contain `unsafe`.

mod address;
mod cpuid;
mod doorbell;
mod icr;
mod interrupts_off;
mod msr;
mod time;
mod vmcs;
mod x2apic;
mod xapic;

pub use address::LinearMap;
pub use cpuid::NativeCpuid;
pub use doorbell::AvicDoorbell;
pub use msr::Msrs;
pub use time::TscClock;
pub use vmcs::CurrentVmcs;
pub use x2apic::X2ApicSender;
pub use xapic::XApicSender;
