//! Tables that translate guest-physical addresses: Intel's extended page tables and AMD's nested page tables.
//!
//! Both have four levels of 512 entries, keep the frame in bits 51:12 and a large page's mark in bit 7, and let bits 2:0 of
//! an entry that leads on forbid nothing when all are set. Only what the last entry says differs.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::frames::OwnedFrame;

/// How much memory guests have: the image lies in it, with all that host and guest share.
pub(crate) const IDENTITY: u64 = 1 << 30;
const PAGE: u64 = 1 << 12;
const LARGE_PAGE: u64 = 1 << 21;
/// Bits 51:12 of an entry: the frame.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bit 7 of an entry that maps a 2 MiB page.
const LARGE: u64 = 1 << 7;
/// In EPT read, write, execute; in nested tables present, writable, user (SDM Vol. 3C 29.3.2; APM Vol. 2 15.25.5).
const LEADS_ON: u64 = 0b111;

/// One guest's tables.
///
/// Other CPUs may run on them while they change: entries are written whole. A changed or removed mapping counts for sure
/// only after each CPU that runs the guest has dropped what it has cached.
#[derive(Debug)]
pub(crate) struct Tables {
    root: u64,
    frames: [Option<OwnedFrame>; 24],
}

impl Tables {
    /// Maps the first [`IDENTITY`] bytes to themselves in pages of 2 MiB, with `attributes` in each entry. Nothing else is
    /// present.
    pub(crate) fn identity(attributes: u64) -> Result<Self, TableError> {
        let mut tables = Self { root: 0, frames: [const { None }; 24] };
        tables.root = tables.new_table()?;
        let mut address = 0;
        while address < IDENTITY {
            tables.entry(address, 2)?.store(address | LARGE | attributes, Ordering::Relaxed);
            address += LARGE_PAGE;
        }
        Ok(tables)
    }

    /// Maps the 4 KiB page at `guest` to the frame at `host`. A 2 MiB page in the way is split first.
    pub(crate) fn map_4k(
        &mut self,
        guest: u64,
        host: u64,
        attributes: u64,
    ) -> Result<(), TableError> {
        if host & !FRAME != 0 {
            return Err(TableError::BadAddress(host));
        }
        self.entry(guest, 1)?.store(host | attributes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the 4 KiB page at `guest` not present.
    pub(crate) fn unmap_4k(&mut self, guest: u64) -> Result<(), TableError> {
        self.entry(guest, 1)?.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The physical address of the first table.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// The entry for `guest` at `level` (1: 4 KiB, 2: 2 MiB); tables on the way are made.
    fn entry(&mut self, guest: u64, level: u32) -> Result<&'static AtomicU64, TableError> {
        if guest & (PAGE - 1) != 0 || guest >> 48 != 0 {
            return Err(TableError::BadAddress(guest));
        }
        let mut entry = slot(self.root, guest, 4);
        for lower in (level..4).rev() {
            let value = entry.load(Ordering::Relaxed);
            let table = match value {
                0 => link(entry, self.new_table()?),
                _ if value & LARGE != 0 => link(entry, self.split(value)?),
                _ => value & FRAME,
            };
            entry = slot(table, guest, lower);
        }
        Ok(entry)
    }

    /// A table whose 512 small pages mean what the large page `value` meant.
    fn split(&mut self, value: u64) -> Result<u64, TableError> {
        let table = self.new_table()?;
        let mut small = value & !LARGE;
        for index in 0..512 {
            slot(table, index * PAGE, 1).store(small, Ordering::Relaxed);
            small += PAGE;
        }
        Ok(table)
    }

    fn new_table(&mut self) -> Result<u64, TableError> {
        let free = self.frames.iter_mut().find(|frame| frame.is_none());
        let table = free.ok_or(TableError::TooMany)?.insert(OwnedFrame::new());
        Ok(table.physical_address())
    }
}

/// Why a mapping was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum TableError {
    /// A guest-physical address that the tables cannot hold, or that is not aligned.
    BadAddress(u64),
    /// The fixed number of tables of one guest is used up.
    TooMany,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadAddress(address) => write!(f, "bad address {address:#x}"),
            Self::TooMany => f.write_str("too many tables for guest-physical memory"),
        }
    }
}

impl core::error::Error for TableError {}

/// Points a not yet used entry, or one that was a large page, to a table below it.
fn link(entry: &AtomicU64, table: u64) -> u64 {
    // Release: the table's contents are in memory before the processor can walk into it.
    entry.store(table | LEADS_ON, Ordering::Release);
    table
}

/// Entry of `guest` in the table of `level` at `table`.
fn slot(table: u64, guest: u64, level: u32) -> &'static AtomicU64 {
    let index = guest >> (12 + 9 * (level - 1)) & 511;
    let address = (table & FRAME) + index * 8;
    // SAFETY: `table` came from `new_table`: an identity-mapped frame that only serves as a table while the `Tables` live,
    // and callers keep the reference no longer than that. The processor reads it at the same time, which an atomic allows
    // for (SDM Vol. 3A 9.1.1, APM Vol. 2 7.3.2: aligned 8-byte accesses are atomic).
    unsafe { &*(address as *const AtomicU64) }
}
