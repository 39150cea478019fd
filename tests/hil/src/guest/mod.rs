//! Code that runs as the guest: 64-bit, at CPL 0, on the host's page tables but on its own stack, GDT and IDT.
//!
//! A guest program is an `extern "C"` function that gets the [`Context`] of its vCPU. Between entry and exit the physical
//! CPU's data are not the guest's: nothing here may ask which CPU it is on, print, or allocate. What host and guest share are
//! the atomics of the context, and [`hypercall`]s.

pub(crate) mod apic;
pub(crate) mod context;
pub(crate) mod cpu;
pub(crate) mod hypercall;
mod interrupts;
pub(crate) mod programs;
pub(crate) mod startup;

pub(crate) use context::{Apic, Context, Eoi, Fault, MAX_VCPUS, context};
pub(crate) use startup::{Program, Start};
