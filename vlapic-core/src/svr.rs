//! Spurious-interrupt vector register.

use bit_field::BitField;

/// SVR as a word (SDM Vol. 3A 10.9, Figure 10-23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Svr(u32);

impl Svr {
    /// Software-disabled, vector FF: the value after RESET and INIT.
    pub const RESET: Self = Self(0xFF);

    /// The word `bits`, unchecked.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The word.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Bit 8: software enable. The one place where this bit is looked at.
    #[inline]
    #[must_use]
    pub const fn software_enabled(self) -> bool {
        self.0 & 1 << 8 != 0
    }

    /// Bits 7:0: the vector delivered when an interrupt vanished before it was taken.
    #[inline]
    #[must_use]
    pub const fn spurious_vector(self) -> u8 {
        self.0 as u8
    }

    /// Bit 9: focus checking disabled.
    #[inline]
    #[must_use]
    pub fn focus_check_disabled(self) -> bool {
        self.0.get_bit(9)
    }

    /// Bit 12: EOIs of level-triggered interrupts are not broadcast.
    #[inline]
    #[must_use]
    pub fn eoi_broadcast_suppressed(self) -> bool {
        self.0.get_bit(12)
    }
}
