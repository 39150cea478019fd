//! Error status register.

/// A set of error bits (SDM Vol. 3A 10.5.3, Figure 10-9; APM Vol. 2 16.4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Errors(u32);

impl Errors {
    /// No error.
    pub const NONE: Self = Self(0);
    /// Bit 5: an IPI with a vector below 16 was to be sent.
    pub const SEND_ILLEGAL_VECTOR: Self = Self(1 << 5);
    /// Bit 6: an interrupt with a vector below 16 arrived.
    pub const RECEIVE_ILLEGAL_VECTOR: Self = Self(1 << 6);
    /// Bit 7: a reserved offset was accessed in xAPIC mode.
    pub const ILLEGAL_REGISTER: Self = Self(1 << 7);

    /// The set as ESR shows it.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set `bits`, as ESR shows it.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 0xFF)
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
