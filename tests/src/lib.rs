//! Silicon models and scenario tests.

pub mod avic_hypervisor;
pub mod avic_model;
mod common;
pub mod contrast;
pub mod demo;
pub mod exhaustive;
pub mod fuzz;
pub mod hypervisor;
pub mod manual;
pub mod migrate;
pub mod model;
pub mod oracle;
pub mod plain;
pub mod readings;
pub mod reference;
pub mod schedule;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod single_step;
pub mod steps;
pub mod svm_loop;

/// The code in the documents is tested here, where all crates are at hand.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// As above.
#[cfg(doctest)]
#[doc = include_str!("../../docs/integration.md")]
pub struct Integration;
