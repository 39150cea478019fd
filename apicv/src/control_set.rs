//! All control words of one VMCS together.

use core::fmt;

use vlapic_core::Mode;
use vlapic_hal::{Vmcs, VmcsError};

use crate::capability::Capabilities;
use crate::control::{
    ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
use crate::field;
use crate::negotiate::{Feature, Features};

/// The control words that have a bit of the APIC's, as they take effect: secondary and tertiary
/// controls that are not activated are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlSet {
    pub(crate) pin: PinControls,
    pub(crate) primary: PrimaryControls,
    pub(crate) secondary: SecondaryControls,
    pub(crate) tertiary: TertiaryControls,
    pub(crate) exit: ExitControls,
}

impl ControlSet {
    /// Reads the words. A word that is not activated is not read: its field may not exist, and a
    /// VMCS that was never written may hold anything in it.
    pub(crate) fn read(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        let word = |field| vmcs.read(field).map(|value| value as u32);
        let primary = PrimaryControls::from_bits(word(field::PRIMARY_CONTROLS)?);
        let secondary = if primary.contains(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS) {
            word(field::SECONDARY_CONTROLS)?
        } else {
            0
        };
        let tertiary = if primary.contains(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS) {
            vmcs.read(field::TERTIARY_CONTROLS)?
        } else {
            0
        };
        Ok(Self {
            pin: PinControls::from_bits(word(field::PIN_CONTROLS)?),
            primary,
            secondary: SecondaryControls::from_bits(secondary),
            tertiary: TertiaryControls::from_bits(tertiary),
            exit: ExitControls::from_bits(word(field::EXIT_CONTROLS)?),
        })
    }

    /// Writes the words, those not activated left out. The primary word goes last, so that no
    /// failure leaves a word activated that was not yet written.
    pub(crate) fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        vmcs.write(field::PIN_CONTROLS, self.pin.bits().into())?;
        vmcs.write(field::EXIT_CONTROLS, self.exit.bits().into())?;
        if self.primary.contains(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS) {
            vmcs.write(field::SECONDARY_CONTROLS, self.secondary.bits().into())?;
        }
        if self.primary.contains(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS) {
            vmcs.write(field::TERTIARY_CONTROLS, self.tertiary.bits())?;
        }
        vmcs.write(field::PRIMARY_CONTROLS, self.primary.bits().into())
    }

    /// These words with the APIC's bits as `features` and `mode` want them.
    ///
    /// Controls that others may want too (external-interrupt exiting, acknowledge on exit, MSR
    /// bitmaps, activation of words) are only ever set here, never cleared.
    pub(crate) fn with_features(
        mut self,
        features: Features,
        mode: Mode,
        caps: &Capabilities,
    ) -> Self {
        let has = |feature| features.contains(feature);
        self.pin =
            self.pin.set(PinControls::PROCESS_POSTED_INTERRUPTS, has(Feature::PostedInterrupts));
        if has(Feature::VirtualInterruptDelivery) {
            self.pin = self.pin.with(PinControls::EXTERNAL_INTERRUPT_EXITING);
        }
        if has(Feature::PostedInterrupts) {
            self.exit = self.exit.with(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
        }
        // Without a shadow the guest's CR8 would be the physical CPU's.
        let cr8_exiting =
            PrimaryControls::CR8_LOAD_EXITING.with(PrimaryControls::CR8_STORE_EXITING);
        self.primary = self
            .primary
            .set(PrimaryControls::USE_TPR_SHADOW, has(Feature::TprShadow))
            .set(cr8_exiting, !has(Feature::TprShadow));
        self.with_secondary(features, mode, caps).with_tertiary(features)
    }

    fn with_secondary(mut self, features: Features, mode: Mode, caps: &Capabilities) -> Self {
        let has = |feature| features.contains(feature);
        let apic_access = has(Feature::ApicAccess) && mode == Mode::XApic;
        let x2apic = has(Feature::X2Apic) && mode == Mode::X2Apic;
        let old = self.secondary;
        self.secondary = old
            .set(SecondaryControls::VIRTUALIZE_APIC_ACCESSES, apic_access)
            .set(SecondaryControls::VIRTUALIZE_X2APIC_MODE, x2apic)
            .set(
                SecondaryControls::APIC_REGISTER_VIRTUALIZATION,
                has(Feature::RegisterVirtualization),
            )
            .set(
                SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY,
                has(Feature::VirtualInterruptDelivery),
            );
        let activated = self.primary.contains(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS);
        if self.secondary != SecondaryControls::default() && !activated {
            let must_be_1 = SecondaryControls::from_bits(caps.secondary().must_be_1());
            self.secondary = self.secondary.with(must_be_1);
            self.primary = self.primary.with(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS);
        }
        self
    }

    fn with_tertiary(mut self, features: Features) -> Self {
        let wanted = features.contains(Feature::IpiVirtualization);
        self.tertiary = self.tertiary.set(TertiaryControls::IPI_VIRTUALIZATION, wanted);
        if wanted {
            self.primary = self.primary.with(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS);
        }
        self
    }

    /// For each word, the bits whose setting this processor's VM entry refuses.
    pub(crate) fn refused(&self, caps: &Capabilities) -> [(ControlWord, u64); 5] {
        let activated = |word| self.primary.contains(word);
        let secondary = if activated(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS) {
            caps.secondary().refused(self.secondary.bits())
        } else {
            0
        };
        let tertiary = self.tertiary.without(caps.tertiary());
        [
            (ControlWord::Pin, caps.pin().refused(self.pin.bits()).into()),
            (ControlWord::Primary, caps.primary().refused(self.primary.bits()).into()),
            (ControlWord::Secondary, secondary.into()),
            (ControlWord::Tertiary, tertiary.bits()),
            (ControlWord::Exit, caps.exit().refused(self.exit.bits()).into()),
        ]
    }
}

/// Names a control word of the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControlWord {
    /// Pin-based VM-execution controls.
    Pin,
    /// Primary processor-based VM-execution controls.
    Primary,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// Tertiary processor-based VM-execution controls.
    Tertiary,
    /// VM-exit controls.
    Exit,
}

impl ControlWord {
    /// The bits of the word that this crate sets or clears.
    pub(crate) const fn ours(self) -> u64 {
        match self {
            Self::Pin => PinControls::EXTERNAL_INTERRUPT_EXITING
                .with(PinControls::PROCESS_POSTED_INTERRUPTS)
                .bits() as u64,
            Self::Primary => PrimaryControls::USE_TPR_SHADOW
                .with(PrimaryControls::CR8_LOAD_EXITING)
                .with(PrimaryControls::CR8_STORE_EXITING)
                .with(PrimaryControls::USE_MSR_BITMAPS)
                .with(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS)
                .with(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS)
                .bits() as u64,
            Self::Secondary => SecondaryControls::VIRTUALIZE_APIC_ACCESSES
                .with(SecondaryControls::VIRTUALIZE_X2APIC_MODE)
                .with(SecondaryControls::APIC_REGISTER_VIRTUALIZATION)
                .with(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
                .bits() as u64,
            Self::Tertiary => TertiaryControls::IPI_VIRTUALIZATION.bits(),
            Self::Exit => ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits() as u64,
        }
    }
}

impl fmt::Display for ControlWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pin => "pin-based controls",
            Self::Primary => "primary processor-based controls",
            Self::Secondary => "secondary processor-based controls",
            Self::Tertiary => "tertiary processor-based controls",
            Self::Exit => "VM-exit controls",
        })
    }
}
