//! Interrupt vectors an APIC may deliver.

/// A vector from 16 to 255.
///
/// Vectors 0 to 15 are illegal for fixed and lowest-priority interrupts and never reach IRR or
/// ISR (SDM Vol. 3A 10.5.2), so a value of this type needs no further check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vector(u8);

impl Vector {
    /// The lowest legal vector.
    pub const LOWEST: Self = Self(16);
    /// The highest legal vector.
    pub const HIGHEST: Self = Self(255);

    /// The vector `raw`, or `None` below 16.
    #[inline]
    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        if raw >= Self::LOWEST.0 { Some(Self(raw)) } else { None }
    }

    /// The vector as a number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The priority class, bits 7:4 in place (SDM Vol. 3A 10.8.3).
    #[inline]
    #[must_use]
    pub const fn class(self) -> u8 {
        self.0 & 0xF0
    }
}

impl core::fmt::Display for Vector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// How an interrupt was signalled: what its TMR bit says (SDM Vol. 3A 10.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// TMR bit 0: EOI stays local.
    Edge,
    /// TMR bit 1: EOI is broadcast to the I/O APICs.
    Level,
}
