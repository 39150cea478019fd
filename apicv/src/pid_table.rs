//! The PID-pointer table of IPI virtualization.

use core::error::Error;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_hal::PhysAddr;

/// A VM's PID-pointer table, over storage of the hypervisor's: 8 bytes for each virtual APIC ID
/// from 0 on, physically contiguous, 8-byte aligned, write-back memory.
///
/// Where a guest sends a physical fixed IPI to virtual APIC ID `t`, the processor takes the
/// posted-interrupt descriptor from entry `t` and posts, without a VM exit. If `t` is beyond the
/// last index or entry `t` is not valid, an APIC-write exit hands the IPI to the hypervisor. So an
/// entry may be left out or cleared at any time.
#[derive(Clone, Copy, Debug)]
pub struct PidTable<'t> {
    entries: &'t [AtomicU64],
    last_index: u16,
}

impl<'t> PidTable<'t> {
    /// The table over `entries`, whose contents stay: zeroes, to begin with.
    ///
    /// # Errors
    /// [`PidTableError::Length`] for no entries or more than 65,536: the VMCS holds the last index
    /// in 16 bits.
    pub fn new(entries: &'t [AtomicU64]) -> Result<Self, PidTableError> {
        let last_index = entries.len().checked_sub(1).and_then(|last| u16::try_from(last).ok());
        let last_index = last_index.ok_or(PidTableError::Length(entries.len()))?;
        Ok(Self { entries, last_index })
    }

    /// Lets the processor post to virtual APIC ID `id` through the descriptor at `descriptor`.
    ///
    /// Ordering: release, against the processor that finds the entry valid and then uses the
    /// descriptor; what was stored to the descriptor before is there.
    ///
    /// # Errors
    /// [`PidTableError::Index`] beyond the table, [`PidTableError::Misaligned`] for a descriptor
    /// that is not aligned to 64 bytes. The entry keeps its value.
    pub fn set(&self, id: u32, descriptor: PhysAddr) -> Result<(), PidTableError> {
        let entry = PidEntry::pointing_to(descriptor)?;
        self.at(id)?.store(entry.bits(), Ordering::Release);
        Ok(())
    }

    /// Makes IPIs to virtual APIC ID `id` exit. A processor that has read the entry already may
    /// still post to its descriptor: keep that until every vCPU of the VM has exited once.
    ///
    /// # Errors
    /// [`PidTableError::Index`] beyond the table.
    pub fn clear(&self, id: u32) -> Result<(), PidTableError> {
        self.at(id)?.store(PidEntry::INVALID.bits(), Ordering::Release);
        Ok(())
    }

    /// The entry for virtual APIC ID `id`, or `None` beyond the table.
    #[must_use]
    pub fn entry(&self, id: u32) -> Option<PidEntry> {
        let entry = self.at(id).ok()?;
        Some(PidEntry::from_bits(entry.load(Ordering::Acquire)))
    }

    /// The index of the last entry, as the VMCS takes it.
    #[must_use]
    pub const fn last_index(&self) -> u16 {
        self.last_index
    }

    /// The storage, to find its physical address.
    #[must_use]
    pub const fn entries(&self) -> &'t [AtomicU64] {
        self.entries
    }

    fn at(&self, id: u32) -> Result<&'t AtomicU64, PidTableError> {
        let index = usize::try_from(id).ok();
        index.and_then(|index| self.entries.get(index)).ok_or(PidTableError::Index(id))
    }
}

/// An entry of the PID-pointer table: bit 0 valid, bits 5:1 zero, above them the address of the
/// descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PidEntry(u64);

impl PidEntry {
    /// An entry through which nothing is posted.
    pub const INVALID: Self = Self(0);

    const VALID: u64 = 1;
    /// Bits 5:1.
    const RESERVED: u64 = 0x3e;

    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The entry for a descriptor at `descriptor`.
    ///
    /// # Errors
    /// [`PidTableError::Misaligned`] if that is not a multiple of 64.
    pub const fn pointing_to(descriptor: PhysAddr) -> Result<Self, PidTableError> {
        if !descriptor.is_aligned(64) {
            return Err(PidTableError::Misaligned(descriptor));
        }
        Ok(Self(descriptor.as_u64() | Self::VALID))
    }

    /// The entry as it stands in the table.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The descriptor's address, or `None` if the processor would exit: bit 0 clear or a reserved
    /// bit set.
    #[must_use]
    pub const fn descriptor(self) -> Option<PhysAddr> {
        if self.0 & (Self::VALID | Self::RESERVED) != Self::VALID {
            return None;
        }
        Some(PhysAddr::new(self.0 & !Self::VALID))
    }
}

/// Why a PID-pointer table was not made or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PidTableError {
    /// A table of this many entries cannot be: 1 to 65,536.
    Length(usize),
    /// The table has no entry for this virtual APIC ID.
    Index(u32),
    /// The descriptor at this address is not aligned to 64 bytes.
    Misaligned(PhysAddr),
}

impl fmt::Display for PidTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(entries) => write!(f, "no PID-pointer table has {entries} entries"),
            Self::Index(id) => write!(f, "the PID-pointer table has no entry for APIC ID {id:#x}"),
            Self::Misaligned(address) => {
                write!(f, "posted-interrupt descriptor at {address} is not aligned to 64 bytes")
            }
        }
    }
}

impl Error for PidTableError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn entries_as_the_processor_reads_them() {
        let storage = [const { AtomicU64::new(0) }; 4];
        let table = PidTable::new(&storage).unwrap();
        assert_eq!(table.last_index(), 3);
        assert_eq!(table.set(2, PhysAddr::new(0x1234_5640)), Ok(()));
        assert_eq!(storage[2].load(Ordering::Relaxed), 0x1234_5641);
        let entry = table.entry(2).unwrap();
        assert_eq!(entry.descriptor(), Some(PhysAddr::new(0x1234_5640)));
        assert_eq!(table.clear(2), Ok(()));
        assert_eq!(table.entry(2), Some(PidEntry::INVALID));
        assert_eq!(PidEntry::INVALID.descriptor(), None);
    }

    #[test]
    fn a_reserved_bit_makes_an_entry_exit() {
        for bit in 1..6 {
            assert_eq!(PidEntry::from_bits(0x1001 | 1 << bit).descriptor(), None);
        }
        assert!(PidEntry::from_bits(0x1041).descriptor().is_some());
    }

    #[test]
    fn beyond_the_table_and_misaligned() {
        let storage = [AtomicU64::new(7)];
        let table = PidTable::new(&storage).unwrap();
        for id in [1, 0x1_0000, u32::MAX] {
            assert_eq!(table.set(id, PhysAddr::new(64)), Err(PidTableError::Index(id)));
            assert_eq!(table.clear(id), Err(PidTableError::Index(id)));
            assert_eq!(table.entry(id), None);
        }
        let odd = PhysAddr::new(0x1020);
        assert_eq!(table.set(0, odd), Err(PidTableError::Misaligned(odd)));
        assert_eq!(storage[0].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn lengths() {
        let storage: Vec<_> = (0..0x1_0001).map(|_| AtomicU64::new(0)).collect();
        assert_eq!(PidTable::new(&[]).unwrap_err(), PidTableError::Length(0));
        assert_eq!(PidTable::new(&storage).unwrap_err(), PidTableError::Length(0x1_0001));
        assert_eq!(PidTable::new(&storage[1..]).unwrap().last_index(), 0xffff);
    }
}
