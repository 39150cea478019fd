//! Intel APIC virtualization.
#![no_std]
