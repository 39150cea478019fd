//! IA32_APIC_BASE (MSR 1B) and the modes it selects.

use bit_field::BitField;

use crate::fault::Fault;
use crate::profile::{Profile, Vendor};

/// The number of IA32_APIC_BASE.
pub const IA32_APIC_BASE: u32 = 0x1B;

/// The mode an APIC is in (SDM Vol. 3A 10.12.1, Table 10-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// EN = 0: there is, as far as the guest can see, no local APIC.
    Disabled,
    /// EN = 1, EXTD = 0: registers in memory.
    XApic,
    /// EN = 1, EXTD = 1: registers in MSRs.
    X2Apic,
}

/// IA32_APIC_BASE as a word (SDM Vol. 3A 10.4.4; APM Vol. 2 Figure 16-31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ApicBase(u64);

impl ApicBase {
    /// The physical address of the register window after RESET.
    pub const DEFAULT_ADDRESS: u64 = 0xFEE0_0000;

    const BSP: u64 = 1 << 8;
    const EXTD: u64 = 1 << 10;
    const EN: u64 = 1 << 11;

    /// The value after RESET: enabled, xAPIC, default address.
    ///
    /// Intel says EN comes up set (SDM Vol. 3A 10.12.5.1). APM Vol. 2 16.10 says RESET clears it;
    /// every platform hands its processors over with EN set, so that is the choice for both.
    #[must_use]
    pub const fn reset(bootstrap: bool) -> Self {
        Self(Self::DEFAULT_ADDRESS | Self::EN | if bootstrap { Self::BSP } else { 0 })
    }

    /// The word `bits`, unchecked.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bit 11, EN: the APIC is *present*. The one place where this bit is looked at.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & Self::EN != 0
    }

    /// The word with nothing but EN and EXTD, the bits that make the mode: what to compare if it only
    /// matters whether the mode is another.
    #[inline]
    #[must_use]
    pub const fn mode_bits(self) -> Self {
        Self(self.0 & (Self::EN | Self::EXTD))
    }

    /// The mode. The invalid pair EN = 0, EXTD = 1 reads as disabled; no checked write makes it.
    #[inline]
    #[must_use]
    pub const fn mode(self) -> Mode {
        match (self.present(), self.0 & Self::EXTD != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// Whether the mode is [`Mode::XApic`].
    #[inline]
    pub(crate) const fn in_xapic_mode(self) -> bool {
        self.0 & (Self::EN | Self::EXTD) == Self::EN
    }

    /// Whether the mode is [`Mode::X2Apic`], of a [`valid`](Self::valid) word: EXTD says it alone.
    #[inline]
    pub(crate) const fn in_x2apic_mode(self) -> bool {
        self.0 & Self::EXTD != 0
    }

    /// Bit 8: the bootstrap processor.
    #[inline]
    #[must_use]
    pub fn bootstrap(self) -> bool {
        self.0.get_bit(8)
    }

    /// The guest-physical address of the register window, 4 KiB aligned, in bytes.
    #[inline]
    #[must_use]
    pub fn address(self) -> u64 {
        self.0.get_bits(12..52) << 12
    }

    /// Whether an APIC of `profile` can hold this word: no reserved bit, and no EXTD without EN.
    pub(crate) const fn valid(self, profile: &Profile) -> bool {
        let mut reserved = 0x2FF | !0 << profile.physical_address_bits();
        if !profile.x2apic() {
            reserved |= Self::EXTD;
        }
        self.0 & reserved == 0 && self.consistent()
    }

    /// Whether EN is set where EXTD is.
    pub(crate) const fn consistent(self) -> bool {
        self.0 & (Self::EN | Self::EXTD) != Self::EXTD
    }

    /// The word with EN and EXTD clear.
    pub(crate) const fn without_mode(self) -> Self {
        Self(self.0 & !(Self::EN | Self::EXTD))
    }

    /// What a guest's WRMSR of `value` makes of this word.
    ///
    /// # Errors
    /// #GP for a reserved bit (7:0, 9, MAXPHYADDR and up, EXTD without x2APIC support), for EXTD
    /// without EN, and for the transitions disabled to x2APIC and x2APIC to xAPIC (SDM Vol. 3A
    /// 10.12.5.1, Figure 10-27; APM Vol. 2 Figure 16-32).
    pub fn write(self, value: u64, profile: &Profile) -> Result<Self, Fault> {
        let mut new = Self(value);
        if !new.valid(profile) {
            return Err(Fault::GeneralProtection);
        }
        match (self.mode(), new.mode()) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => {
                return Err(Fault::GeneralProtection);
            }
            _ => {}
        }
        if profile.vendor() == Vendor::Amd {
            // The BSP flag is read-only there (APM Vol. 2 16.3.1).
            new.0 = new.0 & !Self::BSP | self.0 & Self::BSP;
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: [(Mode, u64); 3] =
        [(Mode::Disabled, 0), (Mode::XApic, 0x800), (Mode::X2Apic, 0xC00)];

    #[test]
    fn every_transition() {
        for profile in [Profile::intel(), Profile::amd()] {
            for (from, from_bits) in BITS {
                let base = ApicBase::from_bits(0xFEE0_0000 | from_bits);
                assert_eq!(base.mode(), from);
                assert!(base.write(0xFEE0_0400, &profile).is_err(), "to the invalid pair");
                for (to, to_bits) in BITS {
                    let legal = !matches!(
                        (from, to),
                        (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic)
                    );
                    let written = base.write(0xFEE0_0000 | to_bits, &profile);
                    assert_eq!(written.is_ok(), legal, "{from:?} to {to:?}");
                    if let Ok(new) = written {
                        assert_eq!(new.mode(), to);
                    }
                }
            }
        }
    }

    #[test]
    fn every_reserved_bit() {
        let base = ApicBase::reset(true);
        for bits in [36, 46, 52] {
            let profile = Profile::intel().with_physical_address_bits(bits);
            for bit in 0..64 {
                let reserved = bit < 8 || bit == 9 || bit >= u32::from(bits);
                let value = base.bits() | 1 << bit;
                assert_eq!(base.write(value, &profile).is_err(), reserved, "bit {bit} of {bits}");
            }
        }
        let old = Profile::intel().with_x2apic(false);
        assert!(base.write(base.bits() | 1 << 10, &old).is_err());
    }

    #[test]
    fn the_bsp_flag_is_read_only_on_amd() {
        let base = ApicBase::reset(true);
        let cleared = base.bits() & !(1 << 8);
        assert!(base.write(cleared, &Profile::amd()).unwrap().bootstrap());
        assert!(!base.write(cleared, &Profile::intel()).unwrap().bootstrap());
        assert_eq!(base.address(), 0xFEE0_0000);
    }
}
