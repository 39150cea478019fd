//! What does not fit into a table entry.

use core::error::Error;
use core::fmt;

use vlapic_hal::PhysAddr;

/// A value does not fit the field that it is for. Nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The backing page is not 4 KiB aligned, or lies beyond 52 bits.
    BackingPage(PhysAddr),
    /// The host's APIC ID has more than 12 bits.
    HostApicId(u16),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackingPage(address) => {
                write!(f, "{address} is not the address of a backing page")
            }
            Self::HostApicId(id) => write!(f, "host APIC ID {id:#x} has more than 12 bits"),
        }
    }
}

impl Error for EncodeError {}
