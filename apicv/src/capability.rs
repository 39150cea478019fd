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

    /// With physical addresses of `bits` bits, as bits 7:0 of CPUID 8000_0008 EAX say. Addresses beyond
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

#[cfg(test)]
mod tests {
    use vlapic_hal::fake::FixedMsrs;
    use vlapic_hal::wrap::{Fault, FaultInjector, When};

    use super::*;
    use crate::machines::{self, SAPPHIRE_RAPIDS};

    #[test]
    fn what_bochs_shows() {
        let caps = Capabilities::detect(&FixedMsrs(&SAPPHIRE_RAPIDS)).unwrap();
        for feature in Feature::ALL {
            assert_eq!(caps.supports(feature), feature != Feature::IpiVirtualization, "{feature}");
        }
        assert!(caps.has_secondary_controls() && caps.has_tertiary_controls());
        assert!(caps.has_msr_bitmaps() && caps.has_acknowledge_on_exit());
        assert!(caps.has_external_interrupt_exiting());
        assert_eq!(caps.vmcs_revision(), 0x2b);
        assert_eq!(caps.primary().must_be_1(), 0x0400_6172, "the true MSR");
        assert_eq!(caps.pin().may_be_1(), 0xff);
        assert_eq!(caps.tertiary().bits(), 0x80);
    }

    /// One bit of one MSR decides each feature.
    #[test]
    fn each_feature_has_its_bit() {
        for (feature, msr, bit) in [
            (Feature::TprShadow, 0x48e, 53),
            (Feature::ApicAccess, 0x48b, 32),
            (Feature::X2Apic, 0x48b, 36),
            (Feature::RegisterVirtualization, 0x48b, 40),
            (Feature::VirtualInterruptDelivery, 0x48b, 41),
            (Feature::PostedInterrupts, 0x48d, 39),
            (Feature::IpiVirtualization, 0x492, 4),
        ] {
            let caps = machines::lacking(&[(msr, 1 << bit)]);
            for other in Feature::ALL {
                assert_eq!(caps.supports(other), other != feature, "{other} without {feature}");
            }
        }
        assert!(!machines::lacking(&[(0x48d, 1 << 32)]).has_external_interrupt_exiting());
        assert!(!machines::lacking(&[(0x48e, 1 << 60)]).has_msr_bitmaps());
        assert!(!machines::lacking(&[(0x48f, 1 << 47)]).has_acknowledge_on_exit());
    }

    /// The table has no other MSRs, so reading one fails.
    #[test]
    fn msrs_that_do_not_exist_are_not_read() {
        let old = [(0x480, 4), (0x481, 0x1f_0000_0016), (0x482, 0), (0x483, 0)];
        let caps = Capabilities::detect(&FixedMsrs(&old)).unwrap();
        assert!(!caps.has_secondary_controls() && !caps.has_tertiary_controls());
        assert!(Feature::ALL.into_iter().all(|feature| !caps.supports(feature)));
        let no_tertiary =
            [(0x480, 4), (0x481, 0), (0x482, 1 << 63 | 1 << 53), (0x483, 0), (0x48b, 1 << 32)];
        let caps = Capabilities::detect(&FixedMsrs(&no_tertiary)).unwrap();
        assert!(caps.supports(Feature::TprShadow) && caps.supports(Feature::ApicAccess));
        assert!(!caps.supports(Feature::X2Apic));
    }

    #[test]
    fn a_read_that_fails_is_handed_on() {
        for (msr, _) in
            SAPPHIRE_RAPIDS.into_iter().filter(|row| ![0x481, 0x482, 0x483].contains(&row.0))
        {
            let error = MsrError::GeneralProtection(msr);
            let fault = Fault::ReadMsr { msr: Some(msr), error };
            let msrs = FaultInjector::new(FixedMsrs(&SAPPHIRE_RAPIDS), [(When::Always, fault)]);
            assert_eq!(Capabilities::detect(&msrs), Err(error));
            assert_eq!(msrs.struck(), 1);
        }
    }

    #[test]
    fn address_width() {
        let caps = machines::full();
        assert_eq!(caps.address_bits(), 46);
        assert!(caps.can_address(PhysAddr::new((1 << 46) - 1)));
        assert!(!caps.can_address(PhysAddr::new(1 << 46)));
        let limited = machines::with(&[(0x480, 0x00db_0400_0000_002b)]);
        assert_eq!(limited.address_bits(), 32);
        assert!(limited.can_address(PhysAddr::new(0xffff_ffff)));
        assert!(!limited.can_address(PhysAddr::new(1 << 32)));
        assert_eq!(caps.with_physical_address_bits(255).address_bits(), 52);
    }

    #[test]
    fn allowed_settings() {
        let allowed = AllowedSettings::from_msr(0x0000_00ff_0000_0016);
        assert!(allowed.allows(0x81) && !allowed.allows(0x180));
        assert_eq!(allowed.refused(0x116), 0x100, "must be 0");
        assert_eq!(allowed.refused(0x02), 0x14, "must be 1");
        assert_eq!(allowed.refused(0x97), 0);
        assert_eq!(allowed.adjust(0x181), 0x97);
        assert_eq!(AllowedSettings::NONE.refused(0), 0);
    }
}
