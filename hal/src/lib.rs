#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

mod address;
mod cpuid;
mod interrupt;
mod msr;
mod time;
mod vmcs;

pub mod fake;
pub mod wrap;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "privileged instructions have their home here")]
pub mod x86;

pub use address::{PhysAddr, Translate};
pub use cpuid::{CpuFeatures, Cpuid, Vendor};
pub use interrupt::{Doorbell, SendError, SendInterrupt};
pub use msr::{MsrError, ReadMsr, WriteMsr};
pub use time::Clock;
pub use vmcs::{FieldKind, FieldWidth, Vmcs, VmcsError, VmcsField};
