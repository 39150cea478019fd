//! AMD AVIC and x2AVIC: the words that hardware and hypervisor exchange, with their meaning.
//!
//! This is not a driver yet. It holds what a driver is built on, and nothing that has no test:
//!
//! * [`Capabilities`]: what CPUID says, and whether erratum 1235 applies;
//! * [`PhysicalEntry`] and [`LogicalEntry`]: entries of the two APIC ID tables;
//! * [`IncompleteIpi`] and [`NoAcceleration`]: exits 401 and 402, and [`Handling`], which says how
//!   hardware treats each access to the page;
//! * [`GuestIrte`]: the IOMMU's interrupt-remapping entry in guest mode.
//!
//! Each raw word is a `Copy` view that can hold anything; what it means is a type of its own.
//! Offsets, exit codes and CPUID bits are those of APM Vol. 2 15.29 and of the AMD IOMMU
//! specification.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod capability;
mod error;
mod handling;
mod incomplete_ipi;
mod irte;
mod logical;
mod no_acceleration;
mod physical;

pub use capability::Capabilities;
pub use error::EncodeError;
pub use handling::Handling;
pub use incomplete_ipi::{IncompleteCause, IncompleteIpi};
pub use irte::{GuestIrte, GuestTarget};
pub use logical::{LogicalEntry, LogicalModel};
pub use no_acceleration::NoAcceleration;
pub use physical::{PhysicalEntry, PhysicalTarget};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
