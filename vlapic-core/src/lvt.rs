//! Entries of the local vector table.

use bit_field::BitField;

use crate::vector::Trigger;

/// An LVT entry as a word (SDM Vol. 3A 10.5.1, Figure 10-8; APM Vol. 2 16.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Lvt(u32);

/// How an LVT entry delivers (bits 10:8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvtDelivery {
    /// 0: the entry's vector.
    Fixed,
    /// 2: SMI.
    Smi,
    /// 4: NMI.
    Nmi,
    /// 5: INIT.
    Init,
    /// 7: ExtINT, the vector comes from the 8259.
    ExtInt,
    /// 1, 3 and 6: nothing is delivered.
    Reserved,
}

/// The timer's mode (LVT timer bits 18:17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// 0: count down once.
    OneShot,
    /// 1: count down and reload.
    Periodic,
    /// 2: fire when the TSC reaches IA32_TSC_DEADLINE.
    TscDeadline,
    /// 3: reserved; the timer does nothing.
    Reserved,
}

impl Lvt {
    /// Masked, all else zero: the value after RESET and INIT.
    pub const RESET: Self = Self(Self::MASK);

    /// Bit 16.
    pub const MASK: u32 = 1 << 16;

    /// Bit 14, read-only to the guest: a level-triggered interrupt was accepted and has not yet
    /// seen its EOI.
    pub const REMOTE_IRR: u32 = 1 << 14;

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

    /// Bits 7:0; may be an illegal vector.
    #[inline]
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Bit 16: no interrupt comes from this entry.
    #[inline]
    #[must_use]
    pub fn masked(self) -> bool {
        self.0.get_bit(16)
    }

    /// Bits 10:8.
    #[inline]
    #[must_use]
    pub fn delivery(self) -> LvtDelivery {
        match self.0.get_bits(8..11) {
            0 => LvtDelivery::Fixed,
            2 => LvtDelivery::Smi,
            4 => LvtDelivery::Nmi,
            5 => LvtDelivery::Init,
            7 => LvtDelivery::ExtInt,
            _ => LvtDelivery::Reserved,
        }
    }

    /// Bit 15, of LINT0 and LINT1.
    #[inline]
    #[must_use]
    pub fn trigger(self) -> Trigger {
        if self.0.get_bit(15) { Trigger::Level } else { Trigger::Edge }
    }

    /// Bit 13, of LINT0 and LINT1: the pin is active low.
    #[inline]
    #[must_use]
    pub fn active_low(self) -> bool {
        self.0.get_bit(13)
    }

    /// Bits 18:17, of the timer's entry.
    #[inline]
    #[must_use]
    pub fn timer_mode(self) -> TimerMode {
        match self.0.get_bits(17..19) {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}
