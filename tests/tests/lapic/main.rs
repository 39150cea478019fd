//! The local APIC of vlapic-core against spec tables written down a second time.

mod access;
mod base;
mod bits;
mod errors;
mod events;
mod lifecycle;
mod pins;
mod priority;
mod random;
mod routing;
mod timer;
mod unowned;
