//! The physical machine: console, interrupts, local APICs, CPUs, memory.
//!
//! Physical address equals virtual address everywhere.

pub(crate) mod acpi;
pub(crate) mod apic;
pub(crate) mod command_line;
pub(crate) mod console;
pub(crate) mod cpu;
pub(crate) mod exit;
pub(crate) mod frames;
pub(crate) mod identity;
pub(crate) mod interrupts;
pub(crate) mod memory;
pub(crate) mod msr;
pub(crate) mod paging;
pub(crate) mod pit;
pub(crate) mod self_check;
pub(crate) mod serial;
pub(crate) mod smp;
pub(crate) mod tables;
