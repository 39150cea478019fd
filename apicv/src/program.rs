//! Programs a VMCS for a set of features.

use core::error::Error;
use core::fmt;

use vlapic_core::Mode;
use vlapic_hal::{PhysAddr, Vmcs, VmcsError, VmcsField};

use crate::capability::Capabilities;
use crate::control::{PrimaryControls, SecondaryControls};
use crate::control_set::{ControlSet, ControlWord};
use crate::field;
use crate::msr_bitmap::MsrBitmap;
use crate::negotiate::{Feature, Features, Reason, Wanted, negotiate};

/// Programs the current VMCS for `features`, with the guest's APIC in `mode`.
///
/// Only bits that belong to the APIC change in the control words; the hypervisor has made all other
/// bits acceptable to VM entry. Bits that others may want as well are set where needed and never
/// cleared: external-interrupt exiting, acknowledge on exit, MSR bitmaps, activation of secondary
/// and tertiary controls. CR8 exits if and only if there is no TPR shadow.
///
/// The features are the same in every mode but two: APIC accesses are virtualized in xAPIC mode
/// only, x2APIC MSRs in x2APIC mode only. What else a disabled APIC should do without is the
/// caller's choice: [`Vcpu`](crate::Vcpu) leaves it the TPR shadow alone, because CR8 goes on
/// working then, while delivery and posting do not ask IA32_APIC_BASE.EN.
///
/// The MSR bitmap, if there is one, gets what [`MsrBitmap::apply`] says; until everything else has
/// succeeded, all of the x2APIC range is intercepted.
///
/// What every VM entry needs anew is left alone: guest interrupt status, TPR threshold and EOI-exit
/// bitmap.
///
/// # Errors
/// Those about features and addresses, and those of VMREAD, come before anything is written. After
/// [`ProgramError::Vmcs`] from a VMWRITE the VMCS is half programmed: do not enter the guest, call
/// again.
pub fn program(
    vmcs: &mut impl Vmcs,
    caps: &Capabilities,
    features: Features,
    mode: Mode,
    addresses: &Addresses<'_>,
    notification_vector: u8,
) -> Result<Translations, ProgramError> {
    check_features(caps, features)?;
    addresses.check(caps, features)?;
    if features.contains(Feature::PostedInterrupts) && notification_vector < 16 {
        return Err(ProgramError::NotificationVector(notification_vector));
    }
    let old = ControlSet::read(vmcs)?;
    let mut new = old.with_features(features, mode, caps);
    if addresses.msr_bitmap.is_some() && caps.has_msr_bitmaps() {
        new.primary = new.primary.with(PrimaryControls::USE_MSR_BITMAPS);
    }
    check_controls(&new, caps)?;
    let translations = translations(vmcs, &old, &new, addresses)?;

    if let Some((bitmap, _)) = addresses.msr_bitmap {
        bitmap.intercept_all_x2apic();
    }
    addresses.write(vmcs, caps, features)?;
    if features.contains(Feature::PostedInterrupts) {
        vmcs.write(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, notification_vector.into())?;
    }
    new.write(vmcs)?;
    if let Some((bitmap, _)) = addresses.msr_bitmap {
        bitmap.apply(features, mode);
    }
    Ok(translations)
}

/// Programs the current VMCS, programmed before by [`program`] for `features`, for another `mode`
/// of the guest's APIC. `bitmap` is the one given then.
///
/// # Errors
/// As [`program`], but no address is looked at.
pub fn reprogram_for_mode(
    vmcs: &mut impl Vmcs,
    caps: &Capabilities,
    features: Features,
    mode: Mode,
    bitmap: Option<&MsrBitmap>,
) -> Result<Translations, ProgramError> {
    check_features(caps, features)?;
    let new = ControlSet::read(vmcs)?.with_features(features, mode, caps);
    check_controls(&new, caps)?;
    Ok(set_controls(vmcs, caps, features, mode, bitmap)?)
}

/// The part of [`reprogram_for_mode`] that follows once its checks are passed.
pub(crate) fn set_controls(
    vmcs: &mut impl Vmcs,
    caps: &Capabilities,
    features: Features,
    mode: Mode,
    bitmap: Option<&MsrBitmap>,
) -> Result<Translations, VmcsError> {
    let old = ControlSet::read(vmcs)?;
    let new = old.with_features(features, mode, caps);
    if let Some(bitmap) = bitmap {
        bitmap.intercept_all_x2apic();
    }
    new.write(vmcs)?;
    if let Some(bitmap) = bitmap {
        bitmap.apply(features, mode);
    }
    Ok(Translations::after(virtualizes_accesses(&old) != virtualizes_accesses(&new)))
}

/// Whether the processor takes the control words that `features` want in every mode of the APIC, so that
/// no later change of the mode can fail for that.
pub(crate) fn check_all_modes(
    vmcs: &impl Vmcs,
    caps: &Capabilities,
    features: Features,
) -> Result<(), ProgramError> {
    let old = ControlSet::read(vmcs)?;
    check_controls(&old.with_features(features, Mode::XApic, caps), caps)?;
    check_controls(&old.with_features(features, Mode::X2Apic, caps), caps)?;
    let shadow = Features::up_to(Feature::TprShadow).intersection(features);
    check_controls(&old.with_features(shadow, Mode::Disabled, caps), caps)
}

/// Where the structures that the VMCS points to lie in physical memory.
///
/// Each is needed if its feature is granted, in whatever mode the APIC is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses<'a> {
    /// The virtual-APIC page; for [`Feature::TprShadow`]. 4 KiB aligned.
    pub virtual_apic: Option<PhysAddr>,
    /// The APIC-access page; for [`Feature::ApicAccess`]. 4 KiB aligned. All vCPUs of a VM share
    /// it; the guest's translations of its register window end in it.
    pub apic_access: Option<PhysAddr>,
    /// The posted-interrupt descriptor; for [`Feature::PostedInterrupts`]. 64-byte aligned.
    pub posted_interrupt_descriptor: Option<PhysAddr>,
    /// The MSR bitmap and its address; for [`Feature::X2Apic`]. One for each vCPU: what it lets
    /// through depends on the mode of the vCPU's APIC.
    pub msr_bitmap: Option<(&'a MsrBitmap, PhysAddr)>,
    /// The PID-pointer table and the index of its last entry; for [`Feature::IpiVirtualization`].
    /// 8-byte aligned.
    pub pid_pointer_table: Option<(PhysAddr, u16)>,
}

impl Addresses<'_> {
    fn check(&self, caps: &Capabilities, features: Features) -> Result<(), ProgramError> {
        for structure in Structure::ALL {
            let Some(address) = self.of(structure) else {
                if features.contains(structure.feature()) {
                    return Err(ProgramError::Missing(structure));
                }
                continue;
            };
            if !address.is_aligned(structure.alignment()) {
                return Err(ProgramError::Misaligned(structure, address));
            }
            let last_index = self.pid_pointer_table.map_or(0, |(_, last_index)| last_index);
            if !caps.can_address(structure.last_byte(address, last_index)) {
                return Err(ProgramError::OutOfReach(structure, address));
            }
        }
        Ok(())
    }

    fn of(&self, structure: Structure) -> Option<PhysAddr> {
        match structure {
            Structure::VirtualApicPage => self.virtual_apic,
            Structure::ApicAccessPage => self.apic_access,
            Structure::PostedInterruptDescriptor => self.posted_interrupt_descriptor,
            Structure::MsrBitmap => self.msr_bitmap.map(|(_, address)| address),
            Structure::PidPointerTable => self.pid_pointer_table.map(|(address, _)| address),
        }
    }

    fn write(
        &self,
        vmcs: &mut impl Vmcs,
        caps: &Capabilities,
        features: Features,
    ) -> Result<(), VmcsError> {
        for structure in Structure::ALL {
            // A field whose feature the processor lacks may not exist.
            let used = match structure {
                Structure::MsrBitmap => caps.has_msr_bitmaps(),
                _ => features.contains(structure.feature()),
            };
            if used && let Some(address) = self.of(structure) {
                vmcs.write(structure.field(), address.as_u64())?;
            }
        }
        if let Some((_, last_index)) = self.pid_pointer_table
            && features.contains(Feature::IpiVirtualization)
        {
            vmcs.write(field::LAST_PID_POINTER_INDEX, last_index.into())?;
        }
        Ok(())
    }
}

/// A structure that the VMCS points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The virtual-APIC page.
    VirtualApicPage,
    /// The APIC-access page.
    ApicAccessPage,
    /// The posted-interrupt descriptor.
    PostedInterruptDescriptor,
    /// The MSR bitmap.
    MsrBitmap,
    /// The PID-pointer table.
    PidPointerTable,
}

impl Structure {
    pub(crate) const ALL: [Self; 5] = [
        Self::VirtualApicPage,
        Self::ApicAccessPage,
        Self::PostedInterruptDescriptor,
        Self::MsrBitmap,
        Self::PidPointerTable,
    ];

    /// The feature that needs it.
    #[must_use]
    pub const fn feature(self) -> Feature {
        match self {
            Self::VirtualApicPage => Feature::TprShadow,
            Self::ApicAccessPage => Feature::ApicAccess,
            Self::PostedInterruptDescriptor => Feature::PostedInterrupts,
            Self::MsrBitmap => Feature::X2Apic,
            Self::PidPointerTable => Feature::IpiVirtualization,
        }
    }

    /// The alignment its address must have, in bytes.
    #[must_use]
    pub const fn alignment(self) -> u64 {
        match self {
            Self::VirtualApicPage | Self::ApicAccessPage | Self::MsrBitmap => 4096,
            Self::PostedInterruptDescriptor => 64,
            Self::PidPointerTable => 8,
        }
    }

    /// The last byte that has to be within reach. The others cannot cross a power of two that is
    /// beyond their alignment; the PID-pointer table can.
    pub(crate) const fn last_byte(self, address: PhysAddr, last_index: u16) -> PhysAddr {
        match self {
            Self::PidPointerTable => {
                PhysAddr::new(address.as_u64().saturating_add(last_index as u64 * 8 + 7))
            }
            _ => address,
        }
    }

    pub(crate) const fn field(self) -> VmcsField {
        match self {
            Self::VirtualApicPage => field::VIRTUAL_APIC,
            Self::ApicAccessPage => field::APIC_ACCESS,
            Self::PostedInterruptDescriptor => field::POSTED_INTERRUPT_DESCRIPTOR,
            Self::MsrBitmap => field::MSR_BITMAP,
            Self::PidPointerTable => field::PID_POINTER_TABLE,
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VirtualApicPage => "virtual-APIC page",
            Self::ApicAccessPage => "APIC-access page",
            Self::PostedInterruptDescriptor => "posted-interrupt descriptor",
            Self::MsrBitmap => "MSR bitmap",
            Self::PidPointerTable => "PID-pointer table",
        })
    }
}

/// What a change of the VMCS means for the translations that processors have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "stale translations send the guest's register accesses to the wrong page"]
pub enum Translations {
    /// They remain right.
    Unchanged,
    /// Those of the register window are wrong: INVEPT (or INVVPID without EPT) on each CPU before
    /// the vCPU next runs there (SDM Vol. 3C 28.3.3.4 and 29.4).
    Stale,
}

impl Translations {
    const fn after(changed: bool) -> Self {
        if changed { Self::Stale } else { Self::Unchanged }
    }
}

/// Why a VMCS was not programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramError {
    /// The processor, or the rest of the set, does not allow this feature.
    NotGranted(Feature, Reason),
    /// The address of this structure is needed and was not given.
    Missing(Structure),
    /// The address of this structure is not a multiple of [`Structure::alignment`].
    Misaligned(Structure, PhysAddr),
    /// The structure reaches beyond [`Capabilities::address_bits`].
    OutOfReach(Structure, PhysAddr),
    /// No interrupt can have this notification vector: it is below 16.
    NotificationVector(u8),
    /// The processor does not let these bits of a control word be what they have to be.
    Fixed(ControlWord, u64),
    /// VMREAD or VMWRITE failed.
    Vmcs(VmcsError),
}

impl From<VmcsError> for ProgramError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(feature, reason) => write!(f, "{feature}: {reason}"),
            Self::Missing(structure) => write!(f, "no address of the {structure}"),
            Self::Misaligned(structure, address) => {
                let alignment = structure.alignment();
                write!(f, "{structure} at {address} is not aligned to {alignment} bytes")
            }
            Self::OutOfReach(structure, address) => {
                write!(f, "{structure} at {address} is beyond what a VMCS can address")
            }
            Self::NotificationVector(vector) => {
                write!(f, "notification vector {vector:#x} is below 0x10")
            }
            Self::Fixed(word, bits) => write!(f, "{word}: bits {bits:#x} are fixed"),
            Self::Vmcs(error) => write!(f, "{error}"),
        }
    }
}

impl Error for ProgramError {}

/// A set made by hand, or on another processor, may not be closed under dependencies.
fn check_features(caps: &Capabilities, features: Features) -> Result<(), ProgramError> {
    match negotiate(Wanted::from(features), caps).refused().next() {
        None => Ok(()),
        Some((feature, reason)) => Err(ProgramError::NotGranted(feature, reason)),
    }
}

fn check_controls(controls: &ControlSet, caps: &Capabilities) -> Result<(), ProgramError> {
    for (word, refused) in controls.refused(caps) {
        let ours = refused & word.ours();
        if ours != 0 {
            return Err(ProgramError::Fixed(word, ours));
        }
    }
    Ok(())
}

fn translations(
    vmcs: &impl Vmcs,
    old: &ControlSet,
    new: &ControlSet,
    addresses: &Addresses<'_>,
) -> Result<Translations, VmcsError> {
    let (before, after) = (virtualizes_accesses(old), virtualizes_accesses(new));
    let moved = match addresses.apic_access {
        Some(address) if before && after => vmcs.read(field::APIC_ACCESS)? != address.as_u64(),
        _ => false,
    };
    Ok(Translations::after(before != after || moved))
}

const fn virtualizes_accesses(controls: &ControlSet) -> bool {
    controls.secondary.contains(SecondaryControls::VIRTUALIZE_APIC_ACCESSES)
}

#[cfg(test)]
mod tests;
