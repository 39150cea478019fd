//! Oracles that nobody here wrote.

pub mod apicv;
#[cfg(target_os = "linux")]
pub mod kvm;
