//! AMD AVIC and x2AVIC: the local APIC of `vlapic-core` with the processor's help.
//!
//! * Once per machine: [`Capabilities::detect`].
//! * Once per VM: a [`Backing`] in each [`Slot`](vlapic_core::Slot), memory for the two APIC ID
//!   tables, and [`Shared::new`].
//! * Once per vCPU: a [`Vcpu`], and [`Vcpu::configure`], which says what it got and why not more.
//! * In the loop: [`Vcpu::before_entry`], VMRUN, [`Vcpu::after_exit`].
//!
//! The page is the same with AVIC, without, and while it goes on and off: [`Inhibit`] lists the
//! reasons for which a vCPU is emulated for a while. Nothing here allocates, locks or calls back.
//! What has to be done is returned.
//!
//! Below the driver, each word that hardware and hypervisor exchange is a `Copy` view that can hold
//! anything, and what it means a type of its own: [`PhysicalEntry`], [`LogicalEntry`],
//! [`IncompleteIpi`], [`NoAcceleration`], [`InterruptControl`], [`GuestIrte`], [`GaLogEntry`].
//! Offsets, exit codes and CPUID bits are those of APM Vol. 2 15.29 and of the AMD IOMMU
//! specification. Where these leave something open, the crate's README says what the driver does.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod backing;
mod capability;
mod check;
mod entry;
mod error;
mod exit;
mod face;
mod ga_log;
mod handling;
mod host;
mod incomplete_ipi;
mod inhibit;
mod irte;
mod logical;
mod logical_table;
mod msr_permissions;
mod negotiate;
mod no_acceleration;
mod physical;
mod physical_table;
mod route;
mod routing;
mod run_state;
mod settle;
mod shared;
#[cfg(test)]
mod tests;
mod vcpu;
mod vmcb;
mod window;

pub use backing::{Backing, Whereabouts};
pub use capability::Capabilities;
pub use check::{Inconsistent, check};
pub use error::{EncodeError, TableError};
pub use exit::Exit;
pub use face::Face;
pub use ga_log::{GaLog, GaLogDrain, GaLogEntry, GaLogError, GaLogPage, IommuRegisters};
pub use handling::Handling;
pub use host::{Host, Trust};
pub use incomplete_ipi::{IncompleteCause, IncompleteIpi};
pub use inhibit::{Inhibit, Inhibits};
pub use irte::{GuestIrte, GuestTarget};
pub use logical::{LogicalEntry, LogicalModel};
pub use logical_table::{LogicalPage, LogicalTable};
pub use msr_permissions::MsrPermissions;
pub use negotiate::{Feature, Features, Grant, Obstacle, Reason, Wanted, negotiate};
pub use no_acceleration::NoAcceleration;
pub use physical::{PhysicalEntry, PhysicalTarget};
pub use physical_table::{PhysicalPage, PhysicalTable};
pub use route::{IrteCell, Route};
pub use shared::{Shared, Storage};
pub use vcpu::{Resources, Vcpu};
pub use vmcb::{Field, InterruptControl, Vmcb, VmcbPage};
pub use window::Window;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
