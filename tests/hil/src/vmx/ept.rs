//! Extended page tables: what the guest's physical addresses mean (SDM Vol. 3C 29.3).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::frames::OwnedFrame;
use super::{Capability, VmxError};

const PAGE: u64 = 1 << 12;
const LARGE_PAGE: u64 = 1 << 21;
/// How much memory guests have: the image lies in it, with all that host and guest share.
pub(crate) const IDENTITY: u64 = 1 << 30;
/// Bits 51:12 of an entry: the frame.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bit 7 of an entry that maps a 2 MiB page.
const LARGE: u64 = 1 << 7;

/// What a guest may do with a page. Zero bits in all three mean: not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions(u64);

impl Permissions {
    /// Read, write, execute.
    pub(crate) const ALL: Self = Self(0b111);
    /// Read and write.
    pub(crate) const DATA: Self = Self(0b011);
    /// Read only.
    pub(crate) const READ: Self = Self(0b001);
}

/// The memory type of a page; the guest's PAT still has its say (SDM Vol. 3C 29.3.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// For devices.
    Uncacheable = 0,
    /// For memory, and for the APIC-access and virtual-APIC pages.
    WriteBack = 6,
}

/// One guest's tables, four levels.
///
/// Other CPUs may run on them while they change: entries are written whole. A changed or removed mapping counts for sure
/// only after [`invalidate`](Self::invalidate) on each CPU that runs the guest.
#[derive(Debug)]
pub(crate) struct Ept {
    root: u64,
    tables: [Option<OwnedFrame>; 24],
    capability: Capability,
}

impl Ept {
    /// Maps the first [`IDENTITY`] bytes to themselves as write-back memory, in pages of 2 MiB. Nothing else is present.
    pub(crate) fn identity(capability: &Capability) -> Result<Self, VmxError> {
        let mut ept = Self { root: 0, tables: [const { None }; 24], capability: *capability };
        ept.root = ept.new_table()?;
        let mut address = 0;
        while address < IDENTITY {
            let value = address | LARGE | (MemoryType::WriteBack as u64) << 3 | Permissions::ALL.0;
            ept.entry(address, 2)?.store(value, Ordering::Relaxed);
            address += LARGE_PAGE;
        }
        Ok(ept)
    }

    /// Maps the 4 KiB page at `guest` to the frame at `host`. A 2 MiB page in the way is split first.
    pub(crate) fn map_4k(
        &mut self,
        guest: u64,
        host: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<(), VmxError> {
        if host & !FRAME != 0 {
            return Err(VmxError::BadAddress(host));
        }
        let value = host | (memory_type as u64) << 3 | permissions.0;
        self.entry(guest, 1)?.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the 4 KiB page at `guest` not present: each access is an EPT violation.
    pub(crate) fn unmap_4k(&mut self, guest: u64) -> Result<(), VmxError> {
        self.entry(guest, 1)?.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The EPT pointer for the VMCS: four levels, tables in write-back memory, no accessed and dirty bits.
    pub(crate) fn pointer(&self) -> u64 {
        const FOUR_LEVELS: u64 = 3 << 3;
        self.root | FOUR_LEVELS | MemoryType::WriteBack as u64
    }

    /// Drops what the calling CPU has cached from these tables.
    pub(crate) fn invalidate(&self) {
        invalidate(&self.capability, self.pointer());
    }

    /// The entry for `guest` at `level` (1: 4 KiB, 2: 2 MiB); tables on the way are made.
    fn entry(&mut self, guest: u64, level: u32) -> Result<&'static AtomicU64, VmxError> {
        if guest & (PAGE - 1) != 0 || guest >> 48 != 0 {
            return Err(VmxError::BadAddress(guest));
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
    fn split(&mut self, value: u64) -> Result<u64, VmxError> {
        let table = self.new_table()?;
        let mut small = value & !LARGE;
        for index in 0..512 {
            slot(table, index * PAGE, 1).store(small, Ordering::Relaxed);
            small += PAGE;
        }
        Ok(table)
    }

    fn new_table(&mut self) -> Result<u64, VmxError> {
        let free = self.tables.iter_mut().find(|table| table.is_none());
        let table = free.ok_or(VmxError::TooManyTables)?.insert(OwnedFrame::new());
        Ok(table.physical_address())
    }
}

/// Drops what the calling CPU, in VMX operation, has cached from the tables of this EPT pointer (INVEPT).
pub(super) fn invalidate(capability: &Capability, pointer: u64) {
    const HAS_SINGLE_CONTEXT: u64 = 1 << 25;
    const SINGLE_CONTEXT: u64 = 1;
    const ALL_CONTEXTS: u64 = 2;
    let single = capability.ept & HAS_SINGLE_CONTEXT != 0;
    let kind = if single { SINGLE_CONTEXT } else { ALL_CONTEXTS };
    let descriptor = [pointer, 0];
    // SAFETY: CPL 0 in VMX operation, with EPT and a kind that the capability MSR offers; the descriptor has 16 bytes and a
    // valid EPT pointer (SDM Vol. 3C 31.3, INVEPT). It only makes later guest accesses walk the tables again.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// Points a not yet used entry, or one that was a large page, to a table below it.
fn link(entry: &AtomicU64, table: u64) -> u64 {
    // Release: the table's contents are in memory before the processor can walk into it.
    entry.store(table | Permissions::ALL.0, Ordering::Release);
    table
}

/// Entry of `guest` in the table of `level` at `table`.
fn slot(table: u64, guest: u64, level: u32) -> &'static AtomicU64 {
    let index = guest >> (12 + 9 * (level - 1)) & 511;
    let address = (table & FRAME) + index * 8;
    // SAFETY: `table` came from `new_table`: an identity-mapped frame that only serves as a table while the `Ept` lives, and
    // callers keep the reference no longer than that. The processor reads it at the same time, which an atomic allows for
    // (SDM Vol. 3A 9.1.1: aligned 8-byte accesses are atomic).
    unsafe { &*(address as *const AtomicU64) }
}
