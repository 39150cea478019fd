//! The checks of VM entry on everything about interrupts, with names for what they find.

use core::error::Error;
use core::fmt;

use vlapic_core::{ApicPage, Register};
use vlapic_hal::{PhysAddr, Vmcs, VmcsError};

use crate::capability::Capabilities;
use crate::control::{
    ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
use crate::control_set::{ControlSet, ControlWord};
use crate::field;
use crate::negotiate::Feature;
use crate::program::Structure;

/// Does to the current VMCS the checks of VM entry that are about interrupts, and names the first
/// rule that is broken. The processor itself says only "error 7, invalid control field".
///
/// `page` is the vCPU's virtual-APIC page. SDM Vol. 3C 26.2.1.1 and 26.2.1.2. The rules for IPI
/// virtualization are taken to be like those of the other features.
///
/// # Errors
/// The first broken rule, or a VMREAD that failed. There may be more.
pub fn check(vmcs: &impl Vmcs, caps: &Capabilities, page: &ApicPage) -> Result<(), Inconsistent> {
    let controls = ControlSet::read(vmcs)?;
    for (word, bits) in controls.refused(caps) {
        require(bits == 0, Inconsistent::Refused(word, bits))?;
    }
    let entry = Entry { vmcs, caps, controls };
    entry.check_features()?;
    for structure in Structure::ALL {
        entry.check_address(structure)?;
    }
    entry.check_threshold(page)?;
    entry.check_notification_vector()
}

/// A rule of VM entry that a VMCS breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inconsistent {
    /// These bits of a control word do not have a setting that the capability MSRs allow.
    Refused(ControlWord, u64),
    /// The feature is on without one that it needs: the first, the second.
    Needs(Feature, Feature),
    /// APIC accesses and x2APIC mode are virtualized at once.
    BothModes,
    /// Virtual-interrupt delivery without external-interrupt exiting.
    NeedsExternalInterruptExiting,
    /// Posted interrupts without acknowledge-interrupt-on-exit.
    NeedsAcknowledgeOnExit,
    /// The address of this structure is not aligned.
    Misaligned(Structure, PhysAddr),
    /// The structure reaches beyond [`Capabilities::address_bits`].
    OutOfReach(Structure, PhysAddr),
    /// The TPR threshold has one of bits 31:4 set, without virtual-interrupt delivery.
    ThresholdReserved(u32),
    /// The TPR threshold is above TPR's class, with neither APIC accesses virtualized nor
    /// virtual-interrupt delivery.
    ThresholdAboveTpr {
        /// The threshold.
        threshold: u8,
        /// VTPR in the page.
        tpr: u8,
    },
    /// The notification vector is above FF.
    NotificationVector(u16),
    /// A VMREAD failed.
    Vmcs(VmcsError),
}

struct Entry<'v, V> {
    vmcs: &'v V,
    caps: &'v Capabilities,
    controls: ControlSet,
}

impl<V: Vmcs> Entry<'_, V> {
    fn has(&self, feature: Feature) -> bool {
        let secondary = |control| self.controls.secondary.contains(control);
        match feature {
            Feature::TprShadow => self.controls.primary.contains(PrimaryControls::USE_TPR_SHADOW),
            Feature::ApicAccess => secondary(SecondaryControls::VIRTUALIZE_APIC_ACCESSES),
            Feature::X2Apic => secondary(SecondaryControls::VIRTUALIZE_X2APIC_MODE),
            Feature::RegisterVirtualization => {
                secondary(SecondaryControls::APIC_REGISTER_VIRTUALIZATION)
            }
            Feature::VirtualInterruptDelivery => {
                secondary(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
            }
            Feature::PostedInterrupts => {
                self.controls.pin.contains(PinControls::PROCESS_POSTED_INTERRUPTS)
            }
            Feature::IpiVirtualization => {
                self.controls.tertiary.contains(TertiaryControls::IPI_VIRTUALIZATION)
            }
        }
    }

    fn check_features(&self) -> Result<(), Inconsistent> {
        use Feature::{
            ApicAccess, IpiVirtualization, PostedInterrupts, RegisterVirtualization, TprShadow,
            VirtualInterruptDelivery, X2Apic,
        };
        for (feature, needed) in [
            (X2Apic, TprShadow),
            (RegisterVirtualization, TprShadow),
            (VirtualInterruptDelivery, TprShadow),
            (IpiVirtualization, TprShadow),
            (PostedInterrupts, VirtualInterruptDelivery),
        ] {
            let met = !self.has(feature) || self.has(needed);
            require(met, Inconsistent::Needs(feature, needed))?;
        }
        require(!(self.has(X2Apic) && self.has(ApicAccess)), Inconsistent::BothModes)?;
        let exiting = self.controls.pin.contains(PinControls::EXTERNAL_INTERRUPT_EXITING);
        require(
            !self.has(VirtualInterruptDelivery) || exiting,
            Inconsistent::NeedsExternalInterruptExiting,
        )?;
        let acknowledge = self.controls.exit.contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
        require(!self.has(PostedInterrupts) || acknowledge, Inconsistent::NeedsAcknowledgeOnExit)
    }

    fn check_address(&self, structure: Structure) -> Result<(), Inconsistent> {
        let used = match structure {
            Structure::MsrBitmap => {
                self.controls.primary.contains(PrimaryControls::USE_MSR_BITMAPS)
            }
            _ => self.has(structure.feature()),
        };
        if !used {
            return Ok(());
        }
        let address = PhysAddr::new(self.vmcs.read(structure.field())?);
        let aligned = address.is_aligned(structure.alignment());
        require(aligned, Inconsistent::Misaligned(structure, address))?;
        let last_index = match structure {
            Structure::PidPointerTable => self.vmcs.read(field::LAST_PID_POINTER_INDEX)? as u16,
            _ => 0,
        };
        let reachable = self.caps.can_address(structure.last_byte(address, last_index));
        require(reachable, Inconsistent::OutOfReach(structure, address))
    }

    fn check_threshold(&self, page: &ApicPage) -> Result<(), Inconsistent> {
        if !self.has(Feature::TprShadow) || self.has(Feature::VirtualInterruptDelivery) {
            return Ok(());
        }
        let threshold = self.vmcs.read(field::TPR_THRESHOLD)? as u32;
        require(threshold & !0xf == 0, Inconsistent::ThresholdReserved(threshold))?;
        let (threshold, tpr) = (threshold as u8, page.read(Register::Tpr) as u8);
        require(
            self.has(Feature::ApicAccess) || threshold <= tpr >> 4,
            Inconsistent::ThresholdAboveTpr { threshold, tpr },
        )
    }

    fn check_notification_vector(&self) -> Result<(), Inconsistent> {
        if !self.has(Feature::PostedInterrupts) {
            return Ok(());
        }
        let vector = self.vmcs.read(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR)? as u16;
        require(vector <= 0xff, Inconsistent::NotificationVector(vector))
    }
}

fn require(rule: bool, broken: Inconsistent) -> Result<(), Inconsistent> {
    if rule { Ok(()) } else { Err(broken) }
}

impl From<VmcsError> for Inconsistent {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(word, bits) => write!(f, "{word}: bits {bits:#x} have a refused setting"),
            Self::Needs(feature, needed) => write!(f, "{feature} without {needed}"),
            Self::BothModes => f.write_str("APIC accesses and x2APIC mode virtualized at once"),
            Self::NeedsExternalInterruptExiting => {
                f.write_str("virtual-interrupt delivery without external-interrupt exiting")
            }
            Self::NeedsAcknowledgeOnExit => {
                f.write_str("posted interrupts without acknowledge-interrupt-on-exit")
            }
            Self::Misaligned(structure, address) => {
                let alignment = structure.alignment();
                write!(f, "{structure} at {address} is not aligned to {alignment} bytes")
            }
            Self::OutOfReach(structure, address) => {
                write!(f, "{structure} at {address} is beyond what a VMCS can address")
            }
            Self::ThresholdReserved(threshold) => {
                write!(f, "TPR threshold {threshold:#x} has reserved bits set")
            }
            Self::ThresholdAboveTpr { threshold, tpr } => {
                write!(f, "TPR threshold {threshold:#x} is above the class of TPR {tpr:#x}")
            }
            Self::NotificationVector(vector) => {
                write!(f, "notification vector {vector:#x} is above 0xff")
            }
            Self::Vmcs(error) => write!(f, "{error}"),
        }
    }
}

impl Error for Inconsistent {}

#[cfg(test)]
mod tests;
