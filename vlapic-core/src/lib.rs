//! The architectural local APIC over its page.
#![no_std]
#![forbid(unsafe_code)]
