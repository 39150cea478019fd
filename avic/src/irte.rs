//! Interrupt-remapping entries of AMD's IOMMU in guest mode.

use core::fmt;

use bit_field::BitField;
use static_assertions::const_assert_eq;
use vlapic_hal::PhysAddr;

use crate::error::EncodeError;
use crate::physical::PAGE;

/// A 128-bit interrupt-remapping entry with GuestMode = 1 (AMD IOMMU specification, guest virtual
/// APIC).
///
/// | bits | field |
/// |---|---|
/// | 0 | remapping enabled |
/// | 1 | suppress I/O page faults |
/// | 2 | GALogIntr |
/// | 6 | IsRun |
/// | 7 | GuestMode |
/// | 31:8, 127:120 | destination, low and high part |
/// | 63:32 | GATag |
/// | 71:64 | vector |
/// | 115:76 | bits 51:12 of the backing page's address |
///
/// Store it with one 16-byte store. The IOMMU does not cache IsRun, the destination and GATag;
/// whatever else changes needs an invalidation of the interrupt table.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct GuestIrte(u128);

const_assert_eq!(size_of::<GuestIrte>(), 16);

impl GuestIrte {
    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The entry made of bits 63:0 and 127:64.
    #[must_use]
    pub const fn from_halves(low: u64, high: u64) -> Self {
        Self((high as u128) << 64 | low as u128)
    }

    /// The entry as it stands in the table.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Bits 63:0 and 127:64.
    #[must_use]
    pub const fn halves(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// What the entry says, or `None` if it is not enabled or not in guest mode. Reserved bits are
    /// not looked at.
    #[must_use]
    pub fn decode(self) -> Option<GuestTarget> {
        if !self.0.get_bit(0) || !self.0.get_bit(7) {
            return None;
        }
        let high = (self.0.get_bits(120..128) as u32) << 24;
        Some(GuestTarget {
            vector: self.0.get_bits(64..72) as u8,
            backing_page: PhysAddr::new((self.0 >> 64) as u64 & PAGE),
            destination: high | self.0.get_bits(8..32) as u32,
            running: self.0.get_bit(6),
            log: self.0.get_bit(2),
            tag: self.0.get_bits(32..64) as u32,
            suppress_page_faults: self.0.get_bit(1),
        })
    }
}

impl fmt::Debug for GuestIrte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestIrte({:#034x})", self.0)
    }
}

/// What an enabled entry in guest mode does: the IRR bit of `vector` is set in the backing page; then, if
/// `running`, the doorbell of `destination` rings; else, if `log`, the IOMMU logs `tag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTarget {
    /// The virtual vector.
    pub vector: u8,
    /// The vCPU's backing page, 4 KiB aligned.
    pub backing_page: PhysAddr,
    /// The physical APIC ID of the CPU that the vCPU runs on.
    pub destination: u32,
    /// IsRun.
    pub running: bool,
    /// GALogIntr: log the interrupts that find the vCPU not running.
    pub log: bool,
    /// GATag: how the log names this entry.
    pub tag: u32,
    /// SupIOPF: requests through this entry raise no I/O page faults.
    pub suppress_page_faults: bool,
}

impl GuestTarget {
    /// The entry, enabled and in guest mode.
    ///
    /// # Errors
    /// [`EncodeError::BackingPage`] if the backing page is not 4 KiB aligned or lies beyond 52
    /// bits.
    pub fn encode(&self) -> Result<GuestIrte, EncodeError> {
        let page = self.backing_page.as_u64();
        if page & !PAGE != 0 {
            return Err(EncodeError::BackingPage(self.backing_page));
        }
        let mut low = 1 << 0 | 1 << 7 | u64::from(self.tag) << 32;
        low.set_bit(1, self.suppress_page_faults);
        low.set_bit(2, self.log);
        low.set_bit(6, self.running);
        low |= u64::from(self.destination & 0x00ff_ffff) << 8;
        let high = u64::from(self.vector) | page | u64::from(self.destination >> 24) << 56;
        Ok(GuestIrte::from_halves(low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: GuestTarget = GuestTarget {
        vector: 0x55,
        backing_page: PhysAddr::new(0x12_3456_7000),
        destination: 0x0100_0023,
        running: true,
        log: true,
        tag: 0xabcd,
        suppress_page_faults: false,
    };

    #[test]
    fn worked_example() {
        let low = 0xabcd << 32 | 0x00_0023 << 8 | 0xc5;
        let high = 0x55 | 0x123_4567 << 12 | 0x01 << 56;
        assert_eq!(TARGET.encode().unwrap().halves(), [low, high]);
        assert_eq!(GuestIrte::from_halves(low, high).decode(), Some(TARGET));
    }

    #[test]
    fn each_flag_is_its_own_bit() {
        let base = GuestTarget { running: false, log: false, ..TARGET };
        let bits = |target: GuestTarget| target.encode().unwrap().bits();
        let flag = |target: GuestTarget| bits(target) ^ bits(base);
        assert_eq!(flag(GuestTarget { suppress_page_faults: true, ..base }), 1 << 1);
        assert_eq!(flag(GuestTarget { log: true, ..base }), 1 << 2);
        assert_eq!(flag(GuestTarget { running: true, ..base }), 1 << 6);
    }

    #[test]
    fn extremes_come_back() {
        let target = GuestTarget {
            vector: 0xff,
            backing_page: PhysAddr::new(PAGE),
            destination: u32::MAX,
            tag: u32::MAX,
            suppress_page_faults: true,
            ..TARGET
        };
        assert_eq!(target.encode().unwrap().decode(), Some(target));
    }

    #[test]
    fn entries_that_are_off_or_not_for_guests_say_nothing() {
        let bits = TARGET.encode().unwrap().bits();
        assert_eq!(GuestIrte::from_bits(bits & !1).decode(), None);
        assert_eq!(GuestIrte::from_bits(bits & !(1 << 7)).decode(), None);
    }

    #[test]
    fn a_misplaced_backing_page_is_refused() {
        let backing_page = PhysAddr::new(0x12_3456_7800);
        let target = GuestTarget { backing_page, ..TARGET };
        assert_eq!(target.encode(), Err(EncodeError::BackingPage(backing_page)));
    }
}
