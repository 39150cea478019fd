//! What does not fit into a table.

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

/// Storage does not make a table, or a vCPU does not fit into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableError {
    /// So many pages are none, or more than a table can have.
    Size(usize),
    /// A page has no physical address.
    NoAddress,
    /// The page with this index does not follow the one before in physical memory.
    NotContiguous(usize),
    /// A page has no place in an entry.
    Encode(EncodeError),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(pages) => write!(f, "{pages} pages do not make a table"),
            Self::NoAddress => f.write_str("a page has no physical address"),
            Self::NotContiguous(index) => {
                write!(f, "page {index} of a table does not follow the one before")
            }
            Self::Encode(error) => error.fmt(f),
        }
    }
}

impl Error for TableError {}
