//! Silicon models and scenario tests.

pub mod model;
