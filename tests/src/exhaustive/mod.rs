//! Whole spaces of input, each point held against [`manual`](crate::manual).

pub mod icr;
