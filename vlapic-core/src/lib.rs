//! The architectural x86 local APIC over its page.
//!
//! The state of a vCPU's local APIC is its 4 KiB page, in the layout that APICv and AVIC hardware
//! use, and one 64-bit word for IA32_APIC_BASE. Nothing that these two say is stored a second
//! time: whether the APIC accepts interrupts is read from them whenever it is asked.
//!
//! * [`ApicPage`] is the page; [`Slot`] is what any CPU may touch of a vCPU; [`LocalApic`] is the
//!   owner's handle; [`Vm`] routes messages over all vCPUs.
//! * Inputs are guest accesses, messages and the time. Outputs are values: [`Effect`], [`Notify`],
//!   [`Event`], [`Prepared`]. The crate calls nobody, allocates nothing, takes no lock and reads
//!   no clock.
//! * A guest's mistake is a value, a [`Fault`], or an error bit in its ESR. No input panics.
//!
//! Where the manuals leave something open the choice is written at the place it is made.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod access;
mod arbitration;
mod backend;
mod base;
mod configure;
mod destination;
mod directory;
mod display;
mod effect;
mod emulated;
mod eoi;
mod esr;
mod fault;
mod feature;
mod icr;
mod inbox;
mod latches;
mod lifecycle;
mod local;
mod lvt;
mod message;
mod mmio;
mod msi;
mod msr;
mod page;
mod plain;
mod priority;
mod profile;
mod register;
#[cfg(test)]
mod shortcuts;
mod slot;
pub mod state;
mod svr;
mod targets;
mod timer;
mod upcall;
mod vector;
mod vectors;
mod vm;
mod window;
mod write;

pub use access::{Access, reserved_in_x2apic, stored_bits};
pub use backend::{
    AccessKind, Backend, Entry, EntryInput, ExitOutcome, Next, SvrWrites, WindowAccess,
};
pub use base::{ApicBase, IA32_APIC_BASE, Mode};
pub use configure::{Configure, Probe};
pub use directory::Directory;
pub use display::Display;
pub use effect::Effect;
pub use emulated::{Emulated, Injection};
pub use esr::Errors;
pub use fault::Fault;
pub use feature::{Feature, Features, Grant, MOST_FEATURES, NoFeature, Reason, Wanted};
pub use icr::{Icr, IcrCommand};
pub use inbox::{DirectInbox, Inbox, Notify};
pub use latches::{Event, Pin};
pub use local::{LocalApic, Prepared};
pub use lvt::{Lvt, LvtDelivery, TimerMode};
pub use message::{Address, Delivery, Destination, Message};
pub use mmio::Width;
pub use msi::{MsiAddress, MsiData, MsiDestination, MsiError};
pub use msr::is_apic_msr;
pub use page::ApicPage;
pub use profile::{ClockRatio, Profile, Vendor};
pub use register::{Bank, LvtEntry, Register};
pub use slot::{Outcome, Receipt, Slot};
pub use svr::Svr;
pub use targets::{Deliveries, Targets};
pub use timer::IA32_TSC_DEADLINE;
pub use upcall::{IllegalUpcallVector, RefusedUpcall};
pub use vector::{Trigger, Vector};
pub use vectors::VectorSet;
pub use vm::{Vm, VmError};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
