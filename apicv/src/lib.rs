//! Intel APIC virtualization: the local APIC of `vlapic-core` with the processor's help.
//!
//! * Once per machine: [`Capabilities::detect`].
//! * Once per vCPU: a [`PostedDescriptor`] and a [`Posting`] over it, a
//!   [`Slot`](vlapic_core::Slot), a [`Vcpu`], and [`Vcpu::configure`], which says what it got and
//!   why not more.
//! * In the loop: [`Vcpu::before_entry`], enter, [`Vcpu::after_exit`].
//!
//! Each level of help works: none, TPR shadow alone, APIC accesses, register virtualization,
//! virtual-interrupt delivery, posted interrupts. The page is the same on all of them.
//!
//! Nothing here allocates, locks or calls back. What has to be done is returned.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cached;
mod capability;
mod check;
mod control;
mod control_set;
mod descriptor;
mod entry;
mod eoi_exit;
mod exit;
mod interrupt_status;
#[cfg(test)]
mod machines;
mod msr_bitmap;
mod negotiate;
mod pid_table;
mod place;
mod posting;
mod probe;
mod program;
#[cfg(test)]
mod rig;
mod run_state;
mod vcpu;

pub mod field;
pub mod irte;

pub use capability::{AllowedSettings, Capabilities};
pub use check::{Inconsistent, check};
pub use control::{
    ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
pub use control_set::ControlWord;
pub use descriptor::{Control, Post, PostedDescriptor};
pub use exit::{Exit, reason};
pub use msr_bitmap::MsrBitmap;
pub use negotiate::{Feature, Features, Grant, Obstacle, Reason, Wanted, negotiate};
pub use pid_table::{PidEntry, PidTable, PidTableError};
pub use posting::{HostMode, NotificationVectors, Posting};
pub use probe::ProbeError;
pub use program::{Addresses, ProgramError, Structure, Translations, program, reprogram_for_mode};
pub use vcpu::Vcpu;
