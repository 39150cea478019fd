//! Entries of the physical APIC ID table.

use core::fmt;

use bit_field::BitField;
use static_assertions::const_assert_eq;
use vlapic_hal::PhysAddr;

use crate::error::EncodeError;

/// An entry of the physical APIC ID table; its index is the guest's physical APIC ID.
///
/// | bits | field |
/// |---|---|
/// | 63 | valid |
/// | 62 | IsRunning |
/// | 61:52 | zero |
/// | 51:12 | address of the backing page |
/// | 11:0 | host physical APIC ID |
///
/// Hardware only reads the table, at any moment: an entry has to be published with one 64-bit
/// store. APM Vol. 2 15.29.4.3.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct PhysicalEntry(u64);

const_assert_eq!(size_of::<PhysicalEntry>(), 8);

impl PhysicalEntry {
    /// No vCPU has this ID: a directed IPI exits, a broadcast skips the entry.
    pub const INVALID: Self = Self(0);

    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The entry as it stands in the table.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// IsRunning, valid or not.
    #[inline]
    #[must_use]
    pub const fn is_running(self) -> bool {
        self.0 & 1 << 62 != 0
    }

    /// The entry, valid or not; nothing else changes.
    #[must_use]
    pub const fn with_valid(self, valid: bool) -> Self {
        Self(if valid { self.0 | 1 << 63 } else { self.0 & !(1 << 63) })
    }

    /// Bits 51:12.
    #[must_use]
    pub const fn backing_page(self) -> PhysAddr {
        PhysAddr::new(self.0 & PAGE)
    }

    /// The entry with IsRunning set, and bits 11:0 of `host_apic_id`.
    #[inline]
    pub(crate) const fn running_on(self, host_apic_id: u16) -> Self {
        Self(self.0 & !0xfff | 1 << 62 | host_apic_id as u64 & 0xfff)
    }

    /// The entry with IsRunning clear.
    #[inline]
    #[must_use]
    pub const fn stopped(self) -> Self {
        Self(self.0 & !(1 << 62))
    }

    /// What the entry says, or `None` if it is not valid. Bits 61:52 are not looked at.
    #[must_use]
    pub fn decode(self) -> Option<PhysicalTarget> {
        self.0.get_bit(63).then(|| PhysicalTarget {
            backing_page: PhysAddr::new(self.0 & PAGE),
            host_apic_id: self.0.get_bits(0..12) as u16,
            running: self.0.get_bit(62),
        })
    }
}

impl fmt::Debug for PhysicalEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysicalEntry({:#018x})", self.0)
    }
}

/// Bits 51:12.
pub(crate) const PAGE: u64 = 0x000f_ffff_ffff_f000;

/// What a valid entry of the physical APIC ID table says of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalTarget {
    /// The vCPU's backing page, 4 KiB aligned.
    pub backing_page: PhysAddr,
    /// The physical APIC ID of the CPU that the doorbell goes to, 12 bits. Hardware looks at it
    /// only while `running`.
    pub host_apic_id: u16,
    /// IsRunning: the vCPU is assigned to that CPU. With this clear an IPI to the vCPU sets IRR
    /// and then exits at the sender.
    pub running: bool,
}

impl PhysicalTarget {
    /// The entry, valid.
    ///
    /// # Errors
    /// [`EncodeError`] if the backing page is not 4 KiB aligned or lies beyond 52 bits, or the host
    /// APIC ID has more than 12 bits.
    pub const fn encode(&self) -> Result<PhysicalEntry, EncodeError> {
        let page = self.backing_page.as_u64();
        if page & !PAGE != 0 {
            return Err(EncodeError::BackingPage(self.backing_page));
        }
        if self.host_apic_id > 0xfff {
            return Err(EncodeError::HostApicId(self.host_apic_id));
        }
        let running = if self.running { 1 << 62 } else { 0 };
        Ok(PhysicalEntry(1 << 63 | running | page | self.host_apic_id as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: PhysicalTarget = PhysicalTarget {
        backing_page: PhysAddr::new(0x12_3456_7000),
        host_apic_id: 0x1a5,
        running: true,
    };

    #[test]
    fn worked_example() {
        assert_eq!(TARGET.encode().unwrap().bits(), 0xc000_0012_3456_71a5);
        let stopped = PhysicalTarget { running: false, ..TARGET };
        assert_eq!(stopped.encode().unwrap().bits(), 0x8000_0012_3456_71a5);
    }

    #[test]
    fn entries_come_back() {
        for running in [false, true] {
            for host_apic_id in [0, 1, 0x1a5, 0xfff] {
                for page in [0, 0x1000, 0x000f_ffff_ffff_f000] {
                    let backing_page = PhysAddr::new(page);
                    let target = PhysicalTarget { backing_page, host_apic_id, running };
                    assert_eq!(target.encode().unwrap().decode(), Some(target));
                }
            }
        }
    }

    #[test]
    fn an_entry_without_its_valid_bit_says_nothing() {
        assert_eq!(PhysicalEntry::INVALID.decode(), None);
        assert_eq!(PhysicalEntry::from_bits(!(1 << 63)).decode(), None);
    }

    #[test]
    fn reserved_bits_are_not_part_of_the_address() {
        let target = PhysicalEntry::from_bits(u64::MAX).decode().unwrap();
        assert_eq!(target.backing_page, PhysAddr::new(0x000f_ffff_ffff_f000));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for page in [0x800, 0x0010_0000_0000_0000] {
            let backing_page = PhysAddr::new(page);
            let target = PhysicalTarget { backing_page, ..TARGET };
            assert_eq!(target.encode(), Err(EncodeError::BackingPage(backing_page)));
        }
        let target = PhysicalTarget { host_apic_id: 0x1000, ..TARGET };
        assert_eq!(target.encode(), Err(EncodeError::HostApicId(0x1000)));
    }
}
