//! Extended page tables: what the guest's physical addresses mean (SDM Vol. 3C 29.3).

use core::arch::asm;

use super::{Capability, VmxError};
use crate::machine::tables::Tables;

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
/// A changed or removed mapping counts for sure only after [`invalidate`](Self::invalidate) on each CPU that runs the guest.
#[derive(Debug)]
pub(crate) struct Ept {
    tables: Tables,
    capability: Capability,
}

impl Ept {
    /// Maps the first [`IDENTITY`](crate::machine::tables::IDENTITY) bytes to themselves as write-back memory. Nothing else
    /// is present.
    pub(crate) fn identity(capability: &Capability) -> Result<Self, VmxError> {
        let attributes = attributes(Permissions::ALL, MemoryType::WriteBack);
        Ok(Self { tables: Tables::identity(attributes)?, capability: *capability })
    }

    /// Maps the 4 KiB page at `guest` to the frame at `host`.
    pub(crate) fn map_4k(
        &mut self,
        guest: u64,
        host: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<(), VmxError> {
        Ok(self.tables.map_4k(guest, host, attributes(permissions, memory_type))?)
    }

    /// Makes the 4 KiB page at `guest` not present: each access is an EPT violation.
    pub(crate) fn unmap_4k(&mut self, guest: u64) -> Result<(), VmxError> {
        Ok(self.tables.unmap_4k(guest)?)
    }

    /// The EPT pointer for the VMCS: four levels, tables in write-back memory, no accessed and dirty bits.
    pub(crate) fn pointer(&self) -> u64 {
        const FOUR_LEVELS: u64 = 3 << 3;
        self.tables.root() | FOUR_LEVELS | MemoryType::WriteBack as u64
    }

    /// Drops what the calling CPU has cached from these tables.
    pub(crate) fn invalidate(&self) {
        invalidate(&self.capability, self.pointer());
    }
}

const fn attributes(permissions: Permissions, memory_type: MemoryType) -> u64 {
    (memory_type as u64) << 3 | permissions.0
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
