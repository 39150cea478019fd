//! What the modelled processor says it can do.

use vlapic_hal::{Cpuid, MsrError, ReadMsr};

use super::controls::{exit, pin, primary, secondary, tertiary};

/// The VMX capability MSRs of a processor, as a set of features that can be taken away one by one.
///
/// Reading them through [`ReadMsr`] gives the values a driver detects from; the model itself checks VM entries and the
/// existence of VMCS fields against the same set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    features: u32,
    /// MAXPHYADDR of the processor, in bits.
    pub physical_width: u32,
}

/// A feature that a processor may or may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Feature {
    TprShadow,
    MsrBitmaps,
    SecondaryControls,
    TertiaryControls,
    Ept,
    VirtualizeApicAccesses,
    VirtualizeX2Apic,
    ApicRegisterVirtualization,
    VirtualInterruptDelivery,
    PostedInterrupts,
    AcknowledgeOnExit,
    IpiVirtualization,
    PreemptionTimer,
    SavePreemptionTimer,
    /// IA32_VMX_BASIC bit 55: the "true" capability MSRs exist.
    TrueControls,
    /// IA32_VMX_BASIC bit 48: addresses in the VMCS are limited to 32 bits.
    Addresses32Bit,
}

/// Feature levels as processors came to have them; each includes the ones above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Level {
    /// The first VMX processors: no TPR shadow.
    Nothing,
    TprShadow,
    ApicAccess,
    /// APIC-register virtualization and "virtualize x2APIC mode".
    RegisterVirtualization,
    VirtualInterruptDelivery,
    PostedInterrupts,
    IpiVirtualization,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Level; 7] = [
        Level::Nothing,
        Level::TprShadow,
        Level::ApicAccess,
        Level::RegisterVirtualization,
        Level::VirtualInterruptDelivery,
        Level::PostedInterrupts,
        Level::IpiVirtualization,
    ];
}

impl Capability {
    /// A processor of a given level, with everything outside APIC virtualization that a modern one has.
    pub const fn at(level: Level) -> Self {
        use Feature as F;
        let mut capability = Capability { features: 0, physical_width: 46 }
            .with(F::MsrBitmaps)
            .with(F::SecondaryControls)
            .with(F::Ept)
            .with(F::AcknowledgeOnExit)
            .with(F::PreemptionTimer)
            .with(F::SavePreemptionTimer)
            .with(F::TrueControls);
        let level = level as u8;
        if level >= Level::TprShadow as u8 {
            capability = capability.with(F::TprShadow);
        }
        if level >= Level::ApicAccess as u8 {
            capability = capability.with(F::VirtualizeApicAccesses);
        }
        if level >= Level::RegisterVirtualization as u8 {
            capability = capability.with(F::ApicRegisterVirtualization).with(F::VirtualizeX2Apic);
        }
        if level >= Level::VirtualInterruptDelivery as u8 {
            capability = capability.with(F::VirtualInterruptDelivery);
        }
        if level >= Level::PostedInterrupts as u8 {
            capability = capability.with(F::PostedInterrupts);
        }
        if level >= Level::IpiVirtualization as u8 {
            capability = capability.with(F::TertiaryControls).with(F::IpiVirtualization);
        }
        capability
    }

    /// A processor with everything the model knows.
    pub const fn full() -> Self {
        Self::at(Level::IpiVirtualization)
    }

    /// The same processor with one feature added.
    #[must_use]
    pub const fn with(mut self, feature: Feature) -> Self {
        self.features |= 1 << feature as u32;
        self
    }

    /// The same processor with one feature taken away; nothing else changes, even if no real processor is so.
    #[must_use]
    pub const fn without(mut self, feature: Feature) -> Self {
        self.features &= !(1 << feature as u32);
        self
    }

    /// Whether the processor has a feature.
    pub const fn has(self, feature: Feature) -> bool {
        self.features & (1 << feature as u32) != 0
    }

    /// How many bits an address in the VMCS may have.
    pub(super) fn vmcs_address_width(self) -> u32 {
        if self.has(Feature::Addresses32Bit) { 32 } else { self.physical_width }
    }

    /// The allowed settings of the pin-based controls.
    pub(super) fn pin(self) -> Allowed {
        Allowed {
            must: 0x16,
            may: pin::EXTERNAL_INTERRUPT_EXITING
                | pin::NMI_EXITING
                | pin::VIRTUAL_NMIS
                | self.bit(Feature::PreemptionTimer, pin::PREEMPTION_TIMER)
                | self.bit(Feature::PostedInterrupts, pin::POSTED_INTERRUPTS),
        }
    }

    /// The allowed settings of the primary processor-based controls.
    pub(super) fn primary(self) -> Allowed {
        Allowed {
            must: 0x0400_6172,
            may: 0xfff9_fffe & !(primary::OPTIONAL)
                | primary::CR3_EXITING
                | self.bit(Feature::TprShadow, primary::TPR_SHADOW)
                | self.bit(Feature::MsrBitmaps, primary::MSR_BITMAPS)
                | self.bit(Feature::SecondaryControls, primary::SECONDARY)
                | self.bit(Feature::TertiaryControls, primary::TERTIARY),
        }
    }

    /// The allowed settings of the secondary processor-based controls.
    pub(super) fn secondary(self) -> Allowed {
        Allowed {
            must: 0,
            may: self.bit(Feature::Ept, secondary::EPT)
                | self.bit(Feature::VirtualizeApicAccesses, secondary::VIRTUALIZE_APIC_ACCESSES)
                | self.bit(Feature::VirtualizeX2Apic, secondary::VIRTUALIZE_X2APIC)
                | self.bit(
                    Feature::ApicRegisterVirtualization,
                    secondary::APIC_REGISTER_VIRTUALIZATION,
                )
                | self
                    .bit(Feature::VirtualInterruptDelivery, secondary::VIRTUAL_INTERRUPT_DELIVERY)
                | secondary::OTHERS,
        }
    }

    /// The tertiary controls that may be 1.
    pub(super) fn tertiary(self) -> u64 {
        if self.has(Feature::IpiVirtualization) { tertiary::IPI_VIRTUALIZATION } else { 0 }
    }

    /// The allowed settings of the VM-exit controls.
    pub(super) fn exit(self) -> Allowed {
        Allowed {
            must: 0x0003_6dfb,
            may: 0x003f_ffff & !exit::ACKNOWLEDGE_INTERRUPT
                | self.bit(Feature::AcknowledgeOnExit, exit::ACKNOWLEDGE_INTERRUPT)
                | self.bit(Feature::SavePreemptionTimer, exit::SAVE_PREEMPTION_TIMER),
        }
    }

    fn bit(self, feature: Feature, bit: u32) -> u32 {
        if self.has(feature) { bit } else { 0 }
    }

    /// IA32_VMX_BASIC: a revision, a 4-KByte region of write-back memory, and the two optional bits.
    fn basic(self) -> u64 {
        let mut basic = 0x12 | 0x1000 << 32 | 6 << 50;
        if self.has(Feature::Addresses32Bit) {
            basic |= 1 << 48;
        }
        if self.has(Feature::TrueControls) {
            basic |= 1 << 55;
        }
        basic
    }
}

/// Which bits of a 32-bit control word must, and which may, be 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) must: u32,
    pub(super) may: u32,
}

impl Allowed {
    /// The capability MSR: bits 31:0 must be 1, bits 63:32 may be 1.
    fn msr(self) -> u64 {
        u64::from(self.must) | u64::from(self.must | self.may) << 32
    }

    /// The MSR without "true" in its name also claims the bits that early processors fixed to 1.
    fn msr_with_defaults(self, default1: u32) -> u64 {
        u64::from(self.must | default1) | u64::from(self.must | self.may | default1) << 32
    }

    /// Whether a control word respects both halves.
    pub(super) fn permits(self, word: u32) -> bool {
        word & self.must == self.must && word & !(self.must | self.may) == 0
    }
}

impl ReadMsr for Capability {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        let entry = Allowed { must: 0x11fb, may: 0xffff };
        let real = self.has(Feature::TrueControls);
        Ok(match msr {
            // IA32_FEATURE_CONTROL: locked, VMX enabled outside SMX.
            0x3a => 5,
            0x480 => self.basic(),
            0x481 => self.pin().msr(),
            0x482 => self.primary().msr_with_defaults(0x0401_e172),
            0x483 => self.exit().msr_with_defaults(0x0003_6dff),
            0x484 => entry.msr_with_defaults(0x11ff),
            // IA32_VMX_MISC: preemption timer counts at TSC / 32, activity states HLT, shutdown, wait-for-SIPI.
            0x485 => 0x1c5,
            0x48b if self.has(Feature::SecondaryControls) => self.secondary().msr(),
            0x48c if self.has(Feature::Ept) => 0x0f01_0633_4141,
            0x48d if real => self.pin().msr(),
            0x48e if real => self.primary().msr(),
            0x48f if real => self.exit().msr(),
            0x490 if real => entry.msr(),
            0x492 if self.has(Feature::TertiaryControls) => self.tertiary(),
            _ => return Err(MsrError::GeneralProtection(msr)),
        })
    }
}

impl Cpuid for Capability {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> [u32; 4] {
        match leaf {
            // "GenuineIntel".
            0 => [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            // VMX, x2APIC, TSC-deadline; a local APIC on the chip.
            1 => [0, 0, 1 << 5 | 1 << 21 | 1 << 24, 1 << 9],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0008 => [self.physical_width | 48 << 8, 0, 0, 0],
            _ => [0; 4],
        }
    }
}
