//! What an import had to put right.

use core::fmt;

use crate::register::Register;

/// Something in an imported state that an APIC of this profile cannot hold, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Correction {
    /// The APIC ID register: it is the slot's.
    Id,
    /// The version register: it is the profile's.
    Version,
    /// Reserved bits of TPR, dropped.
    Tpr,
    /// PPR: it is what TPR and ISR say. Not reported of formats whose writers leave it stale.
    Ppr,
    /// LDR: reserved bits dropped; in x2APIC mode it follows from the ID. A guest that was shown
    /// another one (old Xen) has its logical destinations changed.
    Ldr,
    /// Low bits of DFR, set.
    Dfr,
    /// Bits of SVR that this APIC has not, dropped.
    Svr,
    /// Vectors below 16 in ISR, TMR or IRR, dropped.
    IllegalVectors,
    /// Two vectors of one priority class in service, which no delivery makes. Left as they are.
    ClassInServiceTwice,
    /// Reserved bits of ESR, dropped.
    Esr,
    /// Bits of ICR that are not kept, dropped.
    Icr,
    /// Bits of an LVT entry that are not kept, and entries that this APIC has not, dropped.
    LvtBits,
    /// Mask bits of LVT entries, set: the APIC is software-disabled.
    LvtMasks,
    /// The initial count in TSC-deadline mode: zero.
    InitialCount,
    /// A current count without an initial count, or above it: as if just loaded.
    CurrentCount,
    /// Reserved bits of the divide configuration, dropped.
    DivideConfiguration,
    /// A deadline outside TSC-deadline mode, dropped.
    Deadline,
    /// The count goes on from where it stood at export, from now on: the guest's TSC stands before
    /// the time of export, or the timer's base clock has another speed.
    Phase,
    /// Something where no register is, or in a register that holds nothing, dropped.
    Reserved,
    /// AMD's extended space: reserved bits, or all of it, dropped.
    ExtendedSpace,
    /// The APIC is not present, so its registers are in their reset state; they were not.
    NotPresent,
    /// A stored word "disabled" says otherwise than IA32_APIC_BASE and SVR. They count.
    DisabledWord,
    /// A stored divisor says otherwise than the divide configuration, which counts.
    DivisorWord,
    /// A SIPI that nobody waits for, dropped.
    Startup,
}

impl Correction {
    /// All.
    pub const ALL: [Self; 24] = [
        Self::Id,
        Self::Version,
        Self::Tpr,
        Self::Ppr,
        Self::Ldr,
        Self::Dfr,
        Self::Svr,
        Self::IllegalVectors,
        Self::ClassInServiceTwice,
        Self::Esr,
        Self::Icr,
        Self::LvtBits,
        Self::LvtMasks,
        Self::InitialCount,
        Self::CurrentCount,
        Self::DivideConfiguration,
        Self::Deadline,
        Self::Phase,
        Self::Reserved,
        Self::ExtendedSpace,
        Self::NotPresent,
        Self::DisabledWord,
        Self::DivisorWord,
        Self::Startup,
    ];

    /// What a changed word of `register` is reported as.
    pub(super) const fn of(register: Register) -> Self {
        match register {
            Register::Id => Self::Id,
            Register::Version => Self::Version,
            Register::Tpr => Self::Tpr,
            Register::Ppr => Self::Ppr,
            Register::Ldr => Self::Ldr,
            Register::Dfr => Self::Dfr,
            Register::Svr => Self::Svr,
            Register::Isr(_) | Register::Tmr(_) | Register::Irr(_) => Self::IllegalVectors,
            Register::Esr => Self::Esr,
            Register::IcrLow | Register::IcrHigh => Self::Icr,
            Register::Lvt(_) => Self::LvtBits,
            Register::InitialCount => Self::InitialCount,
            Register::DivideConfiguration => Self::DivideConfiguration,
            Register::Apr
            | Register::RemoteRead
            | Register::Eoi
            | Register::CurrentCount
            | Register::SelfIpi => Self::Reserved,
            Register::ExtendedFeature
            | Register::ExtendedControl
            | Register::SpecificEoi
            | Register::Ier(_)
            | Register::ExtendedLvt(_) => Self::ExtendedSpace,
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// A set of [`Correction`]s: what an import had to put right.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "the guest may notice what was put right"]
pub struct Corrections(u32);

impl Corrections {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether `correction` is in the set.
    #[must_use]
    pub const fn contains(self, correction: Correction) -> bool {
        self.0 & correction.bit() != 0
    }

    /// Whether nothing had to be put right.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members.
    pub fn iter(self) -> impl Iterator<Item = Correction> {
        Correction::ALL.into_iter().filter(move |&correction| self.contains(correction))
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, correction: Correction) -> Self {
        Self(self.0 & !correction.bit())
    }

    pub(super) const fn insert(&mut self, correction: Correction) {
        self.0 |= correction.bit();
    }

    pub(super) const fn insert_if(&mut self, correction: Correction, found: bool) {
        if found {
            self.insert(correction);
        }
    }
}

impl fmt::Debug for Corrections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_distinct() {
        let mut all = Corrections::NONE;
        for correction in Correction::ALL {
            assert!(!all.contains(correction), "{correction:?}");
            all.insert(correction);
        }
        assert_eq!(all.iter().count(), Correction::ALL.len());
    }
}
