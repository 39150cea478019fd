//! Silicon models and scenario tests.

pub mod contrast;
pub mod demo;
pub mod hypervisor;
pub mod model;
pub mod plain;
