//! The traits in memory, for tests that have no such hardware.
//!
//! They are as plain as can be: they do what they are told and know nothing of interrupts. Wrap them
//! in [`wrap`](crate::wrap) to see what a driver does to them or to make them fail.

mod address;
mod clock;
mod cpuid;
mod interrupt;
mod msr;
mod vmcs;

pub use address::VirtualIsPhysical;
pub use clock::ManualClock;
pub use cpuid::FixedCpuid;
pub use interrupt::Unconnected;
pub use msr::{FixedMsrs, MemoryMsrs};
pub use vmcs::MemoryVmcs;
