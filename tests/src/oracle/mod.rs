//! Oracles that nobody here wrote.

#[cfg(target_os = "linux")]
pub mod kvm;
