//! A guest's access to a device in memory, or to CR8: found out, and completed.

use super::SvmError;
use super::vcpu::Current;
use crate::instruction::fetch;
use crate::instruction::mov::{self, Access, DecodeError};
use crate::instruction::privileged::{self, ControlMove, Kind};

impl Current<'_> {
    /// The access that the instruction at RIP makes. For exits that come before the instruction is done: nested page faults,
    /// AVIC faults.
    pub(crate) fn decode_access(&mut self) -> Result<Access, DecodeError> {
        let bytes = fetch::at(self.vcpu.vmcb.save.rip).ok_or(DecodeError::Unsupported)?;
        mov::decode(&bytes, self.general())
    }

    /// Finishes `access` and goes on behind its instruction. `data` is what a load gets; a store has no use for it.
    pub(crate) fn complete_access(&mut self, access: &Access, data: u64) {
        access.complete(data, self.general());
        self.skip(u64::from(access.length));
    }

    /// The general-purpose register of the MOV to or from CR8 at RIP, by its index.
    pub(crate) fn cr8_operand(&self) -> Result<usize, SvmError> {
        let rip = self.vcpu.vmcb.save.rip;
        let kind = fetch::at(rip).and_then(|bytes| privileged::decode(&bytes)).map(|i| i.kind);
        match kind {
            Some(
                Kind::ReadControl(ControlMove { control: 8, general })
                | Kind::WriteControl(ControlMove { control: 8, general }),
            ) => Ok(usize::from(general)),
            _ => Err(SvmError::UnknownInstruction(rip)),
        }
    }
}
