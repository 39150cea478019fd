//! A guest's access to a device in memory: found out, and completed.

use x86::vmx::vmcs::guest;

use super::VmxError;
use super::decode::{self, Access, DecodeError};
use super::ept::IDENTITY;
use super::vcpu::Current;

impl Current<'_> {
    /// The access that the instruction at RIP makes. For exits that come before the instruction is done: EPT violations,
    /// APIC-access exits.
    ///
    /// Guests here run on the host's page tables, so RIP is where the host finds the instruction. A hypervisor whose guests
    /// have their own walks those.
    pub(crate) fn decode_access(&mut self) -> Result<Result<Access, DecodeError>, VmxError> {
        let rip = self.vmcs.get(guest::RIP)?;
        let mut bytes = [0; 15];
        if rip > IDENTITY - bytes.len() as u64 {
            return Ok(Err(DecodeError::Unsupported));
        }
        let code = core::ptr::with_exposed_provenance::<u8>(rip as usize);
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: below `IDENTITY` all addresses are mapped, to themselves, for host and guest; bytes of code are read,
            // and where the guest has written some meanwhile, volatile makes any value of them as good as another.
            *byte = unsafe { code.wrapping_add(index).read_volatile() };
        }
        Ok(decode::decode(&bytes, self.general()))
    }

    /// Finishes `access` and goes on behind its instruction. `data` is what a load gets; a store has no use for it.
    pub(crate) fn complete_access(&mut self, access: &Access, data: u64) -> Result<(), VmxError> {
        access.complete(data, self.general());
        self.skip(u64::from(access.length))
    }
}
