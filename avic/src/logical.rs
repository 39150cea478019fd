//! Entries of the logical APIC ID table.

use core::fmt;

use static_assertions::const_assert_eq;

/// An entry of the logical APIC ID table, by which xAVIC finds the target of a logical IPI. x2AVIC
/// has no such table.
///
/// | bits | field |
/// |---|---|
/// | 31 | valid |
/// | 30:8 | zero |
/// | 7:0 | guest physical APIC ID |
///
/// APM Vol. 2 15.29.4.3.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct LogicalEntry(u32);

const_assert_eq!(size_of::<LogicalEntry>(), 4);

impl LogicalEntry {
    /// Nobody has this logical ID: an IPI to it exits.
    pub const INVALID: Self = Self(0);

    const VALID: u32 = 1 << 31;

    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The valid entry that leads to guest physical APIC ID `id`.
    #[must_use]
    pub const fn leading_to(id: u8) -> Self {
        Self(Self::VALID | id as u32)
    }

    /// The entry as it stands in the table.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The guest physical APIC ID, or `None` if the entry is not valid. Bits 30:8 are not looked
    /// at.
    #[must_use]
    pub const fn guest_apic_id(self) -> Option<u8> {
        if self.0 & Self::VALID != 0 { Some(self.0 as u8) } else { None }
    }
}

impl fmt::Debug for LogicalEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogicalEntry({:#010x})", self.0)
    }
}

/// How logical IDs are laid out, from the guest's DFR (APM Vol. 2 16.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalModel {
    /// DFR bits 31:28 are F: eight bits, one an APIC.
    Flat,
    /// DFR bits 31:28 are 0: a cluster in bits 7:4, four bits, one an APIC.
    Cluster,
}

impl LogicalModel {
    /// The model that `dfr` selects, or `None` for the values that the manual leaves undefined.
    #[must_use]
    pub const fn from_dfr(dfr: u32) -> Option<Self> {
        match dfr >> 28 {
            0xf => Some(Self::Flat),
            0x0 => Some(Self::Cluster),
            _ => None,
        }
    }

    /// The byte offset into the table of the entry for logical ID `id` (bits 31:24 of LDR).
    ///
    /// `None` if no entry can be: the ID has no bit or more than one, or names cluster F, which is
    /// the broadcast. A guest that uses such an ID is one that AVIC cannot route logical IPIs for.
    #[must_use]
    pub const fn entry_offset(self, id: u8) -> Option<u16> {
        let (cluster, members) = match self {
            Self::Flat => (0, id),
            Self::Cluster => (id >> 4, id & 0xf),
        };
        if members.count_ones() != 1 || cluster == 0xf {
            return None;
        }
        Some(16 * cluster as u16 + 4 * members.trailing_zeros() as u16)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vlapic_core::{ApicPage, DirectInbox, IA32_APIC_BASE, LocalApic, Profile, Register, Slot};

    use super::*;

    #[test]
    fn worked_examples() {
        assert_eq!(LogicalEntry::leading_to(5).bits(), 0x8000_0005);
        assert_eq!(LogicalModel::Flat.entry_offset(0x20), Some(0x14));
        assert_eq!(LogicalModel::Cluster.entry_offset(0x34), Some(0x38));
    }

    #[test]
    fn entries_come_back() {
        for id in 0..=u8::MAX {
            assert_eq!(LogicalEntry::leading_to(id).guest_apic_id(), Some(id));
        }
        assert_eq!(LogicalEntry::INVALID.guest_apic_id(), None);
        assert_eq!(LogicalEntry::from_bits(0x7fff_ffff).guest_apic_id(), None);
    }

    /// 8 entries for flat IDs, 60 for those of 15 clusters, each with a place of its own.
    #[test]
    fn every_id_has_its_own_entry() {
        for (model, count) in [(LogicalModel::Flat, 8), (LogicalModel::Cluster, 60)] {
            let offsets = (0..=u8::MAX).filter_map(|id| model.entry_offset(id));
            let offsets: BTreeSet<u16> = offsets.collect();
            let dense: BTreeSet<u16> = (0..count).map(|index| 4 * index).collect();
            assert_eq!(offsets, dense, "{model:?}");
            assert_eq!((0..=u8::MAX).filter_map(|id| model.entry_offset(id)).count(), dense.len());
        }
    }

    #[test]
    fn ids_without_an_entry() {
        for id in [0, 3, 0xff] {
            assert_eq!(LogicalModel::Flat.entry_offset(id), None, "{id:#x}");
        }
        for id in [0x30, 0x33, 0xf1, 0xff] {
            assert_eq!(LogicalModel::Cluster.entry_offset(id), None, "{id:#x}");
        }
    }

    /// x2AVIC takes the logical ID from the x2APIC ID, as any APIC in x2APIC mode does.
    #[test]
    fn x2avic_needs_no_table() {
        let page = ApicPage::new();
        let slot = Slot::new(&page, 0x1234, Profile::amd(), DirectInbox);
        let mut apic = LocalApic::new(&slot, true);
        let base = slot.base().bits();
        assert!(apic.write_msr(IA32_APIC_BASE, base | 1 << 10, 0).is_ok());
        assert_eq!(apic.read_msr(Register::Ldr.msr(), 0), Ok(0x0123_0010));
    }

    #[test]
    fn models() {
        assert_eq!(LogicalModel::from_dfr(0xffff_ffff), Some(LogicalModel::Flat));
        assert_eq!(LogicalModel::from_dfr(0x0fff_ffff), Some(LogicalModel::Cluster));
        assert_eq!(LogicalModel::from_dfr(0x7fff_ffff), None);
    }
}
