//! The VM-execution and VM-exit control words, as far as interrupts are concerned.

use core::fmt;

/// Declares a control word: a Copy view of the raw bits, with the bits of this crate's concern
/// named.
macro_rules! control_word {
    (
        $(#[$doc:meta])*
        $name:ident: $raw:ty { $( $(#[$bit_doc:meta])* $bit_name:ident = $bit:literal; )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            $( $(#[$bit_doc])* pub const $bit_name: Self = Self(1 << $bit); )*

            /// The word `bits`, with bits this crate has no name for kept as they are.
            #[must_use]
            pub const fn from_bits(bits: $raw) -> Self {
                Self(bits)
            }

            /// The word.
            #[must_use]
            pub const fn bits(self) -> $raw {
                self.0
            }

            /// Whether every control of `controls` is 1 here.
            #[must_use]
            pub const fn contains(self, controls: Self) -> bool {
                self.0 & controls.0 == controls.0
            }

            /// With every control of `controls` set to 1.
            #[must_use]
            pub const fn with(self, controls: Self) -> Self {
                Self(self.0 | controls.0)
            }

            /// With every control of `controls` set to 0.
            #[must_use]
            pub const fn without(self, controls: Self) -> Self {
                Self(self.0 & !controls.0)
            }

            /// With every control of `controls` set to 1 if `on`, else to 0.
            #[must_use]
            pub const fn set(self, controls: Self, on: bool) -> Self {
                if on { self.with(controls) } else { self.without(controls) }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}"), self.0)?;
                $( if self.contains(Self::$bit_name) {
                    f.write_str(concat!(" ", stringify!($bit_name)))?;
                } )*
                f.write_str(")")
            }
        }
    };
}

control_word! {
    /// Pin-based VM-execution controls (SDM Vol. 3C 24.6.1).
    PinControls: u32 {
        /// External interrupts cause VM exits, whatever the guest's IF.
        EXTERNAL_INTERRUPT_EXITING = 0;
        /// The preemption timer counts down in the guest and exits at 0.
        PREEMPTION_TIMER = 6;
        /// The notification vector makes the processor take in posted interrupts.
        PROCESS_POSTED_INTERRUPTS = 7;
    }
}

control_word! {
    /// Primary processor-based VM-execution controls (SDM Vol. 3C 24.6.2).
    PrimaryControls: u32 {
        /// Exit as soon as the guest could take an interrupt; no virtual interrupt is recognized.
        INTERRUPT_WINDOW_EXITING = 2;
        /// HLT exits.
        HLT_EXITING = 7;
        /// The tertiary controls count.
        ACTIVATE_TERTIARY_CONTROLS = 17;
        /// MOV to CR8 exits.
        CR8_LOAD_EXITING = 19;
        /// MOV from CR8 exits.
        CR8_STORE_EXITING = 20;
        /// CR8 and TPR live in the virtual-APIC page.
        USE_TPR_SHADOW = 21;
        /// RDMSR and WRMSR exit as the bitmap says; with 0 here they always exit.
        USE_MSR_BITMAPS = 28;
        /// The secondary controls count.
        ACTIVATE_SECONDARY_CONTROLS = 31;
    }
}

control_word! {
    /// Secondary processor-based VM-execution controls (SDM Vol. 3C 24.6.2). All count as 0 while
    /// [`PrimaryControls::ACTIVATE_SECONDARY_CONTROLS`] is 0.
    SecondaryControls: u32 {
        /// Accesses to the APIC-access page are virtualized or exit.
        VIRTUALIZE_APIC_ACCESSES = 0;
        /// Guest-physical addresses go through EPT.
        ENABLE_EPT = 1;
        /// RDMSR and WRMSR of 800 to 8FF may be virtualized.
        VIRTUALIZE_X2APIC_MODE = 4;
        /// Most registers are read from, and written to, the virtual-APIC page.
        APIC_REGISTER_VIRTUALIZATION = 8;
        /// The processor evaluates and delivers pending virtual interrupts.
        VIRTUAL_INTERRUPT_DELIVERY = 9;
    }
}

control_word! {
    /// Tertiary processor-based VM-execution controls. All count as 0 while
    /// [`PrimaryControls::ACTIVATE_TERTIARY_CONTROLS`] is 0.
    TertiaryControls: u64 {
        /// The processor posts the guest's IPIs through the PID-pointer table.
        IPI_VIRTUALIZATION = 4;
    }
}

control_word! {
    /// Primary VM-exit controls (SDM Vol. 3C 24.7.1).
    ExitControls: u32 {
        /// An external-interrupt exit takes the vector from the interrupt controller.
        ACKNOWLEDGE_INTERRUPT_ON_EXIT = 15;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;

    #[test]
    fn bits_stand_where_the_manual_puts_them() {
        assert_eq!(PinControls::EXTERNAL_INTERRUPT_EXITING.bits(), 0x1);
        assert_eq!(PinControls::PREEMPTION_TIMER.bits(), 0x40);
        assert_eq!(PinControls::PROCESS_POSTED_INTERRUPTS.bits(), 0x80);
        assert_eq!(PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(), 0x4);
        assert_eq!(PrimaryControls::HLT_EXITING.bits(), 0x80);
        assert_eq!(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS.bits(), 0x2_0000);
        assert_eq!(PrimaryControls::CR8_LOAD_EXITING.bits(), 0x8_0000);
        assert_eq!(PrimaryControls::CR8_STORE_EXITING.bits(), 0x10_0000);
        assert_eq!(PrimaryControls::USE_TPR_SHADOW.bits(), 0x20_0000);
        assert_eq!(PrimaryControls::USE_MSR_BITMAPS.bits(), 0x1000_0000);
        assert_eq!(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS.bits(), 0x8000_0000);
        assert_eq!(SecondaryControls::VIRTUALIZE_APIC_ACCESSES.bits(), 0x1);
        assert_eq!(SecondaryControls::ENABLE_EPT.bits(), 0x2);
        assert_eq!(SecondaryControls::VIRTUALIZE_X2APIC_MODE.bits(), 0x10);
        assert_eq!(SecondaryControls::APIC_REGISTER_VIRTUALIZATION.bits(), 0x100);
        assert_eq!(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits(), 0x200);
        assert_eq!(TertiaryControls::IPI_VIRTUALIZATION.bits(), 0x10);
        assert_eq!(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits(), 0x8000);
    }

    #[test]
    fn other_bits_are_kept() {
        let word = PinControls::from_bits(0x16);
        let both =
            PinControls::EXTERNAL_INTERRUPT_EXITING.with(PinControls::PROCESS_POSTED_INTERRUPTS);
        assert_eq!(word.with(both).bits(), 0x97);
        assert_eq!(word.with(both).without(both), word);
        assert!(!word.set(PinControls::EXTERNAL_INTERRUPT_EXITING, true).contains(both));
        assert!(word.set(both, true).contains(both));
        assert_eq!(word.with(both).set(both, false), word);
    }

    #[test]
    fn debug_names_the_set_controls() {
        let word = ExitControls::from_bits(0x8001);
        assert_eq!(format!("{word:?}"), "ExitControls(0x8001 ACKNOWLEDGE_INTERRUPT_ON_EXIT)");
    }
}
