//! The two APIC ID tables as the hardware reads them.

use std::sync::Arc;

use crate::model::Memory;

use super::guest::Guest;

impl<'m> Guest<'m> {
    pub(super) fn tables(&self) -> Tables<'_, 'm> {
        Tables {
            memory: &self.around.memory,
            physical: self.controls.physical_table,
            logical: self.controls.logical_table,
        }
    }
}

/// The tables of one VM.
#[derive(Debug)]
pub(super) struct Tables<'a, 'm> {
    memory: &'a Arc<Memory<'m>>,
    physical: u64,
    logical: u64,
}

impl Tables<'_, '_> {
    /// Reads an entry of the physical table.
    pub(super) fn physical(&self, index: u32) -> PhysicalEntry {
        PhysicalEntry(self.memory.load64(self.physical + 8 * u64::from(index)))
    }

    /// Reads an entry of the logical table.
    pub(super) fn logical(&self, number: u32) -> LogicalEntry {
        LogicalEntry(self.memory.load32(self.logical + 4 * u64::from(number)))
    }
}

/// An entry of the physical table.
#[derive(Debug, Clone, Copy)]
pub(super) struct PhysicalEntry(u64);

impl PhysicalEntry {
    pub(super) fn is_valid(self) -> bool {
        self.0 >> 63 != 0
    }

    pub(super) fn is_running(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    pub(super) fn backing_page(self) -> u64 {
        self.0 & 0x000f_ffff_ffff_f000
    }

    pub(super) fn host_id(self) -> u32 {
        self.0 as u32 & 0xfff
    }
}

/// An entry of the logical table.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogicalEntry(u32);

impl LogicalEntry {
    /// The guest physical APIC ID, if the entry is valid.
    pub(super) fn guest_id(self) -> Option<u32> {
        (self.0 >> 31 != 0).then_some(self.0 & 0xff)
    }
}
