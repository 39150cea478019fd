//! VMREAD and VMWRITE.

use core::arch::asm;
use core::marker::PhantomData;

use crate::{Vmcs, VmcsError, VmcsField};

/// The VMCS that is current on this CPU.
///
/// Which one that is changes with VMPTRLD and VMCLEAR, behind this value's back. A hypervisor makes
/// the value after VMPTRLD and drops it before the next. It cannot be sent to another thread.
#[derive(Debug)]
pub struct CurrentVmcs {
    // A raw pointer is neither Send nor Sync: the current VMCS belongs to one CPU.
    _this_cpu: PhantomData<*mut ()>,
}

impl CurrentVmcs {
    /// Access to the VMCS that is current on the calling CPU.
    ///
    /// # Safety
    /// For as long as the value is used:
    /// - the code runs at CPL 0 in VMX root operation (SDM vol. 3, VMREAD and VMWRITE: #UD or #GP
    ///   otherwise);
    /// - it stays on this CPU, and the VMCS meant stays current there. If none is current, nothing
    ///   worse happens than [`VmcsError::NoCurrentVmcs`];
    /// - the fields written keep the next VM entry and VM exit within memory that the processor may
    ///   touch: many fields hold physical addresses, and the host-state fields say where execution
    ///   goes on after the exit.
    pub const unsafe fn new() -> Self {
        Self { _this_cpu: PhantomData }
    }

    fn vmread(&self, field: VmcsField) -> Result<u64, Failure> {
        let mut value = 0_u64;
        let (invalid, valid): (u8, u8);
        // One block for the instruction and its flags: nothing may come between them.
        // SAFETY: in VMX root operation at CPL 0, which the caller of `new` vouched for, VMREAD with
        // register operands raises no fault. It writes its destination register only if it
        // succeeds, hence `inout`, and tells failure by CF or ZF (SDM vol. 3, VMREAD, and
        // "Conventions"). No memory of ours is touched and the stack is not used.
        unsafe {
            asm!(
                "vmread {value}, {field}",
                "setc {invalid}",
                "setz {valid}",
                value = inout(reg) value,
                field = in(reg) u64::from(field.encoding()),
                invalid = out(reg_byte) invalid,
                valid = out(reg_byte) valid,
                options(nostack),
            );
        }
        outcome(invalid != 0, valid != 0).map(|()| value)
    }

    fn vmwrite(&mut self, field: VmcsField, value: u64) -> Result<(), Failure> {
        let (invalid, valid): (u8, u8);
        // SAFETY: in VMX root operation at CPL 0, which the caller of `new` vouched for, VMWRITE
        // with register operands raises no fault; it changes one field of the current VMCS or fails
        // with CF or ZF set (SDM vol. 3, VMWRITE, and "Conventions"). The processor acts on the
        // field at the next VM entry; for what it does then, the caller of `new` vouched too. The
        // stack is not used.
        unsafe {
            asm!(
                "vmwrite {field}, {value}",
                "setc {invalid}",
                "setz {valid}",
                field = in(reg) u64::from(field.encoding()),
                value = in(reg) value,
                invalid = out(reg_byte) invalid,
                valid = out(reg_byte) valid,
                options(nostack),
            );
        }
        outcome(invalid != 0, valid != 0)
    }

    fn explain(&self, failure: Failure, field: VmcsField) -> VmcsError {
        match failure {
            Failure::Invalid => VmcsError::NoCurrentVmcs,
            Failure::Valid => match self.vmread(VmcsField::VM_INSTRUCTION_ERROR) {
                Ok(number) => instruction_error(number, field),
                Err(_) => VmcsError::NoCurrentVmcs,
            },
        }
    }
}

impl Vmcs for CurrentVmcs {
    #[inline]
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        self.vmread(field).map_err(|failure| self.explain(failure, field))
    }

    #[inline]
    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        self.vmwrite(field, value).map_err(|failure| self.explain(failure, field))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// VMfailInvalid, CF: there is no current VMCS.
    Invalid,
    /// VMfailValid, ZF: the VM-instruction error field says why.
    Valid,
}

/// CF and ZF after a VMX instruction (SDM vol. 3, "Conventions"; never both).
const fn outcome(carry: bool, zero: bool) -> Result<(), Failure> {
    match (carry, zero) {
        (false, false) => Ok(()),
        (true, _) => Err(Failure::Invalid),
        (false, true) => Err(Failure::Valid),
    }
}

/// SDM vol. 3, "VM Instruction Error Numbers".
const fn instruction_error(number: u64, field: VmcsField) -> VmcsError {
    match number {
        12 => VmcsError::Unsupported(field),
        13 => VmcsError::ReadOnly(field),
        other => VmcsError::Instruction(other as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carry_means_no_vmcs_and_zero_means_read_the_error() {
        assert_eq!(outcome(false, false), Ok(()));
        assert_eq!(outcome(true, false), Err(Failure::Invalid));
        assert_eq!(outcome(false, true), Err(Failure::Valid));
    }

    #[test]
    fn error_numbers_have_meanings() {
        let field = VmcsField::new(0x4402);
        assert_eq!(instruction_error(12, field), VmcsError::Unsupported(field));
        assert_eq!(instruction_error(13, field), VmcsError::ReadOnly(field));
        assert_eq!(instruction_error(7, field), VmcsError::Instruction(7));
    }
}
