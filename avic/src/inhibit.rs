//! Why AVIC is off for a vCPU.

use core::fmt;

use static_assertions::const_assert;

/// Makes the enum, the list of its variants and their names of one list, so that none is left out of another.
macro_rules! inhibits {
    ($(#[$about:meta])* pub enum Inhibit { $($(#[$doc:meta])* $name:ident = $text:literal,)+ }) => {
        $(#[$about])*
        pub enum Inhibit {
            $($(#[$doc])* $name,)+
        }

        impl Inhibit {
            /// All.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
        }

        impl fmt::Display for Inhibit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)+
                })
            }
        }
    };
}

inhibits! {
    /// A reason for which a vCPU runs without AVIC although it was granted, by plain emulation over the
    /// same page.
    ///
    /// Those of the first group are the hypervisor's: it sets them for the VM
    /// ([`Shared::inhibit`](crate::Shared::inhibit)), for one vCPU
    /// ([`Backing::inhibit`](crate::Backing::inhibit)), or by a call of its own. Those of the second
    /// group are read from the APIC pages and IA32_APIC_BASE before each entry, and come and go by
    /// themselves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    #[repr(u8)]
    pub enum Inhibit {
        /// The hypervisor does not want it.
        Disabled = "disabled",
        /// The virtual 8254's ticks are re-injected at each EOI, which must therefore be seen.
        PitReinjection = "pit-reinjection",
        /// Hyper-V's AutoEOI: taking an interrupt ends it, which hardware does not know.
        SynicAutoEoi = "synic-auto-eoi",
        /// A guest with encrypted memory: hardware and hypervisor could not share the page.
        Sev = "sev",
        /// Interrupts are held back (a debugger).
        BlockInterrupts = "interrupts-blocked",
        /// The vCPU runs a guest of its own.
        Nested = "nested",
        /// An interrupt that is not the APIC's (ExtINT) waits for the guest to become interruptible:
        /// [`Vcpu::set_external_interrupt_window`](crate::Vcpu::set_external_interrupt_window).
        InterruptWindow = "interrupt-window",

        /// IA32_APIC_BASE.EN is clear: there is no APIC to accelerate.
        Absent = "apic-absent",
        /// The register window is not at its default address.
        BaseMoved = "base-moved",
        /// x2APIC mode without x2AVIC.
        X2ApicUnsupported = "x2apic-unsupported",
        /// A vCPU of the VM has an APIC ID above what the tables of this mode can hold: 254 for xAVIC,
        /// 511 or 4095 for x2AVIC, less if the table's storage is shorter. A broadcast would miss it.
        IdTooLarge = "id-too-large",
        /// x2APIC mode, and a vCPU has APIC ID 255, of which the manual does not say how x2AVIC treats
        /// it ([`Trust::entry_255`](crate::Trust::entry_255)).
        Id255 = "id-255",
        /// A vCPU in xAPIC mode has changed its APIC ID: the tables are indexed by the one it was made
        /// with.
        IdModified = "id-modified",
        /// x2APIC mode while another vCPU accepts interrupts in xAPIC mode: hardware looks for logical
        /// destinations among x2APIC IDs only.
        MixedModes = "mixed-modes",
        /// xAPIC mode, and this vCPU's DFR does not select the model that the logical table is laid out
        /// in: hardware may go by the sender's DFR.
        LogicalModel = "logical-model",
        /// The guest uses AMD's interrupt enable registers, which AVIC does not look at.
        InterruptEnableRegisters = "interrupt-enable-registers",
        /// The logical APIC IDs of the VM are not one bit each, all different, in one model. This one
        /// does not turn AVIC off: the logical table stays empty, logical IPIs exit and are emulated.
        LogicalIds = "logical-ids",
    }
}

const_assert!(Inhibit::ALL.len() <= 32);

impl Inhibit {
    pub(crate) const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// A set of [`Inhibit`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Inhibits(u32);

impl Inhibits {
    /// None.
    pub const NONE: Self = Self(0);

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether `inhibit` is in the set.
    #[must_use]
    pub const fn contains(self, inhibit: Inhibit) -> bool {
        self.0 & inhibit.bit() != 0
    }

    /// Whether the set has no member.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a member turns AVIC off: any but [`Inhibit::LogicalIds`].
    #[inline]
    #[must_use]
    pub const fn stop_acceleration(self) -> bool {
        self.0 & !Inhibit::LogicalIds.bit() != 0
    }

    /// The members of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set, with `inhibit` if `present`.
    #[must_use]
    pub const fn with_if(self, inhibit: Inhibit, present: bool) -> Self {
        if present { Self(self.0 | inhibit.bit()) } else { self }
    }

    /// The members.
    pub fn iter(self) -> impl Iterator<Item = Inhibit> {
        Inhibit::ALL.iter().copied().filter(move |&inhibit| self.contains(inhibit))
    }
}

impl fmt::Debug for Inhibits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_distinct_and_all_but_one_stop() {
        let mut all = Inhibits::NONE;
        for &inhibit in Inhibit::ALL {
            assert!(!all.contains(inhibit));
            let one = Inhibits::NONE.with_if(inhibit, true);
            assert_eq!(one.iter().collect::<std::vec::Vec<_>>(), [inhibit]);
            assert_eq!(one.stop_acceleration(), inhibit != Inhibit::LogicalIds);
            all = all.with_if(inhibit, true);
        }
        assert_eq!(all.iter().count(), Inhibit::ALL.len());
    }
}
