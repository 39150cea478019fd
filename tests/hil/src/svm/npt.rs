//! Nested page tables: what the guest's physical addresses mean (APM Vol. 2 15.25).

use super::SvmError;
use crate::machine::tables::Tables;

/// What a guest may do with a page. Nested accesses count as a user's, so all have the user bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions(u64);

impl Permissions {
    /// Read, write, execute.
    pub(crate) const ALL: Self = Self(PRESENT | WRITABLE | USER);
    /// Read and execute.
    pub(crate) const READ: Self = Self(PRESENT | USER);
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;

/// The memory type of a page, by the host's PAT; the guest's has its say too (APM Vol. 2 15.25.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// For devices.
    Uncacheable = (WRITE_THROUGH | CACHE_DISABLE) as isize,
    /// For memory.
    WriteBack = 0,
}

/// One guest's tables, four levels.
///
/// A changed or removed mapping counts for sure only after
/// [`flush_translations`](super::vcpu::Current::flush_translations) for each vCPU that runs on them.
#[derive(Debug)]
pub(crate) struct Npt {
    tables: Tables,
}

impl Npt {
    /// Maps the first [`IDENTITY`](crate::machine::tables::IDENTITY) bytes to themselves as write-back memory. Nothing else
    /// is present.
    pub(crate) fn identity() -> Result<Self, SvmError> {
        Ok(Self { tables: Tables::identity(Permissions::ALL.0)? })
    }

    /// Maps the 4 KiB page at `guest` to the frame at `host`.
    pub(crate) fn map_4k(
        &mut self,
        guest: u64,
        host: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<(), SvmError> {
        Ok(self.tables.map_4k(guest, host, permissions.0 | memory_type as u64)?)
    }

    /// Makes the 4 KiB page at `guest` not present: each access is a nested page fault.
    pub(crate) fn unmap_4k(&mut self, guest: u64) -> Result<(), SvmError> {
        Ok(self.tables.unmap_4k(guest)?)
    }

    /// N_CR3 for the control block.
    pub(crate) fn root(&self) -> u64 {
        self.tables.root()
    }
}
