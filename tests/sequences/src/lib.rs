//! Seeded sequences of what guests and their hosts do to a local APIC.
//!
//! The bare-metal image carries them out on a processor, the tests on a model or in plain emulation; both take them from
//! here, so that a seed and a number name the same operations on either side.
#![no_std]
#![forbid(unsafe_code)]

pub mod apic;
mod digest;
mod operation;
mod random;
pub mod vmx;

pub use self::digest::Digest;
pub use self::operation::Operation;
pub use self::random::Random;
