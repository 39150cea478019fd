//! What does not fit into a table, and what keeps a vCPU from entering.

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

/// What has to be done before a vCPU may enter. Then call
/// [`Vcpu::before_entry`](crate::Vcpu::before_entry) again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryError {
    /// The vCPU is to run without xAVIC, but its register window is mapped for AVIC. Unmap it, flush it from
    /// the TLBs of every CPU, and say so: [`Window::unmapped`](crate::Window::unmapped).
    WindowMapped,
    /// This vCPU's addressing has become one that the other vCPUs' hardware cannot route: kick each
    /// of them ([`Notify::Kick`](vlapic_core::Notify::Kick)), so that their next entry is emulated.
    Peers,
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WindowMapped => "the register window has to be unmapped first",
            Self::Peers => "the other vCPUs have to go through their entry work first",
        })
    }
}

impl Error for EntryError {}
