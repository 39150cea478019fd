//! Intel APIC virtualization.
#![no_std]
#![forbid(unsafe_code)]

mod capability;
mod control;
mod negotiate;

pub mod field;

pub use capability::{AllowedSettings, Capabilities};
pub use control::{
    ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
pub use negotiate::{Feature, Features, Grant, Reason, Wanted, negotiate};
