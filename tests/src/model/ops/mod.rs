//! The micro-operations of APIC virtualization, one file each.

mod deliver;
mod eoi;
mod ipi;
mod posted;
mod self_ipi;
mod tpr;
