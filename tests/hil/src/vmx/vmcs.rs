//! The VMCS: its region in memory, and its fields while it is current.

use core::arch::asm;

use vlapic_hal::x86::CurrentVmcs;
use vlapic_hal::{Vmcs, VmcsField};
use x86::bits64::vmx;

use super::VmxError;
use crate::machine::frames::OwnedFrame;

/// A VMXON or VMCS region: one frame that belongs to the processor from now on.
/// A VMCS must be clear when its region is dropped.
#[derive(Debug)]
pub(crate) struct Region {
    frame: OwnedFrame,
}

impl Region {
    /// A zeroed frame that starts with the VMCS revision identifier (SDM Vol. 3C 25.2).
    pub(crate) fn new(revision: u32) -> Self {
        let mut frame = OwnedFrame::new();
        frame.bytes()[..4].copy_from_slice(&revision.to_le_bytes());
        Self { frame }
    }

    /// Enters VMX operation on the calling CPU, which keeps the region.
    pub(super) fn vmxon(self) -> Result<(), VmxError> {
        // SAFETY: CPL 0, CR4.VMXE and IA32_FEATURE_CONTROL are set by the only caller; the region holds the revision
        // identifier and nobody else knows it (SDM Vol. 3C 24.11.5).
        let entered = unsafe { vmx::vmxon(self.address()) };
        entered.map_err(|_| VmxError::Region(self.address()))?;
        // The processor uses the frame until VMXOFF, which never comes.
        core::mem::forget(self);
        Ok(())
    }

    fn address(&self) -> u64 {
        self.frame.physical_address()
    }

    /// Writes the VMCS back to memory and marks it clear: the next entry must be a VMLAUNCH, on any CPU.
    ///
    /// Must run on the CPU where the VMCS was current last (SDM Vol. 3C 25.11.1).
    pub(crate) fn clear(&self) -> Result<(), VmxError> {
        // SAFETY: CPL 0 in VMX operation; the region is a VMCS region of this processor's revision.
        unsafe { vmx::vmclear(self.address()) }.map_err(|_| VmxError::Region(self.address()))
    }

    /// Makes this the calling CPU's current VMCS. Refused while another one is.
    pub(crate) fn make_current(&self) -> Result<(), VmxError> {
        const NONE: u64 = u64::MAX;
        if current() != NONE {
            return Err(VmxError::Region(self.address()));
        }
        // SAFETY: as in `clear`; callers clear it on one CPU before they load it on another.
        unsafe { vmx::vmptrld(self.address()) }.map_err(|_| VmxError::Region(self.address()))
    }
}

/// The current-VMCS pointer, all ones when there is none (SDM Vol. 3C 31.3, VMPTRST).
fn current() -> u64 {
    let mut pointer = 0_u64;
    // SAFETY: CPL 0 in VMX operation; VMPTRST stores 8 bytes into the local variable.
    unsafe { asm!("vmptrst [{}]", in(reg) &raw mut pointer, options(nostack)) };
    pointer
}

/// The fields of the VMCS that is current on the calling CPU.
#[derive(Debug)]
pub(crate) struct Fields {
    current: CurrentVmcs,
}

impl Fields {
    /// # Safety
    /// As for [`CurrentVmcs::new`].
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        Self { current: unsafe { CurrentVmcs::new() } }
    }

    /// What the APIC driver is lent.
    pub(crate) fn hal(&mut self) -> &mut CurrentVmcs {
        &mut self.current
    }

    /// Reads the field with this encoding.
    pub(crate) fn get(&self, encoding: u32) -> Result<u64, VmxError> {
        Ok(self.current.read(VmcsField::new(encoding))?)
    }

    /// Writes the field with this encoding.
    pub(crate) fn set(&mut self, encoding: u32, value: u64) -> Result<(), VmxError> {
        Ok(self.current.write(VmcsField::new(encoding), value)?)
    }

    /// Writes many fields, each given as encoding and value.
    pub(crate) fn set_all(&mut self, fields: &[(u32, u64)]) -> Result<(), VmxError> {
        fields.iter().try_for_each(|&(encoding, value)| self.set(encoding, value))
    }

    /// Sets or clears `bits` in a field of at most 32 bits.
    pub(crate) fn assign(&mut self, encoding: u32, bits: u32, on: bool) -> Result<(), VmxError> {
        let now = self.get(encoding)?;
        let bits = u64::from(bits);
        let next = if on { now | bits } else { now & !bits };
        if next == now { Ok(()) } else { self.set(encoding, next) }
    }
}
