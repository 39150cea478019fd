//! A guest's access to a device in memory: found out, and completed.

use x86::vmx::vmcs::guest;

use super::VmxError;
use super::vcpu::Current;
use crate::instruction::fetch;
use crate::instruction::mov::{self, Access, DecodeError};

impl Current<'_> {
    /// The access that the instruction at RIP makes. For exits that come before the instruction is done: EPT violations,
    /// APIC-access exits.
    pub(crate) fn decode_access(&mut self) -> Result<Result<Access, DecodeError>, VmxError> {
        let rip = self.vmcs.get(guest::RIP)?;
        let Some(bytes) = fetch::at(rip) else {
            return Ok(Err(DecodeError::Unsupported));
        };
        Ok(mov::decode(&bytes, self.general()))
    }

    /// Finishes `access` and goes on behind its instruction. `data` is what a load gets; a store has no use for it.
    pub(crate) fn complete_access(&mut self, access: &Access, data: u64) -> Result<(), VmxError> {
        access.complete(data, self.general());
        self.skip(u64::from(access.length))
    }
}
