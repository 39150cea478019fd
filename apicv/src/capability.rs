//! What this processor's VMX can do for interrupts (SDM Vol. 3D appendix A).

use vlapic_hal::{MsrError, PhysAddr, ReadMsr};

use crate::control::{
    ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
use crate::negotiate::Feature;

/// IA32_VMX_BASIC.
const BASIC: u32 = 0x480;
const PIN: u32 = 0x481;
const PRIMARY: u32 = 0x482;
const EXIT: u32 = 0x483;
const SECONDARY: u32 = 0x48b;
const TRUE_PIN: u32 = 0x48d;
const TRUE_PRIMARY: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TERTIARY: u32 = 0x492;

/// The VMX capabilities of one processor, read once.
///
/// All processors of a machine are expected to have the same; a hypervisor that finds two that
/// differ can ask each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    basic: u64,
    pin: AllowedSettings,
    primary: AllowedSettings,
    secondary: AllowedSettings,
    /// All bits are "may be 1" bits (IA32_VMX_PROCBASED_CTLS3).
    tertiary: u64,
    exit: AllowedSettings,
    physical_address_bits: u8,
}

impl Capabilities {
    /// Reads the capabilities from the VMX MSRs of the calling CPU.
    ///
    /// An MSR that may not exist is read only after another has said that it does: the "true"
    /// MSRs (IA32_VMX_BASIC bit 55), the secondary (primary bit 63) and the tertiary one (primary
    /// bit 49). The caller has made sure by CPUID that VMX itself exists.
    ///
    /// Physical addresses are taken to be 52 bits wide, the most there can be; see
    /// [`with_physical_address_bits`](Self::with_physical_address_bits).
    ///
    /// # Errors
    /// What `msrs` returned for an MSR that should exist.
    pub fn detect<M: ReadMsr + ?Sized>(msrs: &M) -> Result<Self, MsrError> {
        let basic = msrs.read_msr(BASIC)?;
        let has_true = basic & 1 << 55 != 0;
        let read = |number, true_number| {
            msrs.read_msr(if has_true { true_number } else { number })
                .map(AllowedSettings::from_msr)
        };
        let pin = read(PIN, TRUE_PIN)?;
        let primary = read(PRIMARY, TRUE_PRIMARY)?;
        let exit = read(EXIT, TRUE_EXIT)?;
        let has_secondary = primary.allows(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS.bits());
        let has_tertiary = primary.allows(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS.bits());
        let secondary = if has_secondary {
            AllowedSettings::from_msr(msrs.read_msr(SECONDARY)?)
        } else {
            AllowedSettings::NONE
        };
        let tertiary = if has_tertiary { msrs.read_msr(TERTIARY)? } else { 0 };
        Ok(Self { basic, pin, primary, secondary, tertiary, exit, physical_address_bits: 52 })
    }

    /// With physical addresses of `bits` bits, as CPUID 8000_0008:EAX[7:0] says. Addresses beyond
    /// are then refused with a name before the processor fails a VM entry over them.
    #[must_use]
    pub const fn with_physical_address_bits(mut self, bits: u8) -> Self {
        self.physical_address_bits = if bits < 52 { bits } else { 52 };
        self
    }

    /// Whether the processor has the control that `feature` stands for. Whether the controls it
    /// depends on are there too is [`negotiate`](crate::negotiate())'s question.
    #[must_use]
    pub const fn supports(&self, feature: Feature) -> bool {
        match feature {
            Feature::TprShadow => self.primary.allows(PrimaryControls::USE_TPR_SHADOW.bits()),
            Feature::ApicAccess => {
                self.secondary.allows(SecondaryControls::VIRTUALIZE_APIC_ACCESSES.bits())
            }
            Feature::X2Apic => {
                self.secondary.allows(SecondaryControls::VIRTUALIZE_X2APIC_MODE.bits())
            }
            Feature::RegisterVirtualization => {
                self.secondary.allows(SecondaryControls::APIC_REGISTER_VIRTUALIZATION.bits())
            }
            Feature::VirtualInterruptDelivery => {
                self.secondary.allows(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits())
            }
            Feature::PostedInterrupts => {
                self.pin.allows(PinControls::PROCESS_POSTED_INTERRUPTS.bits())
            }
            Feature::IpiVirtualization => {
                self.tertiary & TertiaryControls::IPI_VIRTUALIZATION.bits() != 0
            }
        }
    }

    /// Settings of the pin-based controls.
    #[must_use]
    pub const fn pin(&self) -> AllowedSettings {
        self.pin
    }

    /// Settings of the primary processor-based controls.
    #[must_use]
    pub const fn primary(&self) -> AllowedSettings {
        self.primary
    }

    /// Settings of the secondary processor-based controls; none allowed where there are none.
    #[must_use]
    pub const fn secondary(&self) -> AllowedSettings {
        self.secondary
    }

    /// The tertiary processor-based controls that may be 1; none need be.
    #[must_use]
    pub const fn tertiary(&self) -> TertiaryControls {
        TertiaryControls::from_bits(self.tertiary)
    }

    /// Settings of the VM-exit controls.
    #[must_use]
    pub const fn exit(&self) -> AllowedSettings {
        self.exit
    }

    /// Whether there are secondary controls, and so a VMCS field for them.
    #[must_use]
    pub const fn has_secondary_controls(&self) -> bool {
        self.primary.allows(PrimaryControls::ACTIVATE_SECONDARY_CONTROLS.bits())
    }

    /// Whether there are tertiary controls, and so a VMCS field for them.
    #[must_use]
    pub const fn has_tertiary_controls(&self) -> bool {
        self.primary.allows(PrimaryControls::ACTIVATE_TERTIARY_CONTROLS.bits())
    }

    /// Whether MSR bitmaps can be used.
    #[must_use]
    pub const fn has_msr_bitmaps(&self) -> bool {
        self.primary.allows(PrimaryControls::USE_MSR_BITMAPS.bits())
    }

    /// Whether external-interrupt exiting can be used.
    #[must_use]
    pub const fn has_external_interrupt_exiting(&self) -> bool {
        self.pin.allows(PinControls::EXTERNAL_INTERRUPT_EXITING.bits())
    }

    /// Whether "acknowledge interrupt on exit" can be used.
    #[must_use]
    pub const fn has_acknowledge_on_exit(&self) -> bool {
        self.exit.allows(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits())
    }

    /// How many bits an address in the VMCS may have: 32 where IA32_VMX_BASIC bit 48 says so, else
    /// the width of physical addresses.
    #[must_use]
    pub const fn address_bits(&self) -> u8 {
        let limited = self.basic & 1 << 48 != 0;
        if limited && self.physical_address_bits > 32 { 32 } else { self.physical_address_bits }
    }

    /// Whether `address` may stand in a VMCS as far as its width goes.
    #[must_use]
    pub const fn can_address(&self, address: PhysAddr) -> bool {
        // At most 52, see `with_physical_address_bits`.
        address.as_u64() >> self.address_bits() == 0
    }

    /// The VMCS revision identifier (IA32_VMX_BASIC bits 30:0).
    #[must_use]
    pub const fn vmcs_revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }
}

/// Which settings of a 32-bit control word VM entry accepts (SDM Vol. 3D A.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedSettings {
    must_be_1: u32,
    may_be_1: u32,
}

impl AllowedSettings {
    /// Every control must be 0.
    pub const NONE: Self = Self { must_be_1: 0, may_be_1: 0 };

    /// From the capability MSR's value: controls that must be 1 in the low half, that may be 1 in
    /// the high half.
    #[must_use]
    pub const fn from_msr(value: u64) -> Self {
        Self { must_be_1: value as u32, may_be_1: (value >> 32) as u32 }
    }

    /// The controls that must be 1.
    #[must_use]
    pub const fn must_be_1(self) -> u32 {
        self.must_be_1
    }

    /// The controls that may be 1.
    #[must_use]
    pub const fn may_be_1(self) -> u32 {
        self.may_be_1
    }

    /// Whether every control of `controls` may be 1.
    #[must_use]
    pub const fn allows(self, controls: u32) -> bool {
        self.may_be_1 & controls == controls
    }

    /// The controls whose setting in `word` VM entry refuses.
    #[must_use]
    pub const fn refused(self, word: u32) -> u32 {
        self.must_be_1 & !word | word & !self.may_be_1
    }

    /// `word` with what must be 1 set and what must be 0 cleared: how a hypervisor makes the
    /// controls that it has no wish for.
    #[must_use]
    pub const fn adjust(self, word: u32) -> u32 {
        (word | self.must_be_1) & self.may_be_1
    }
}
