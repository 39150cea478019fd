//! The SVM layer of the example hypervisor: everything between `EFER.SVME` and the APIC.
//!
//! ```text
//! capability       SVM on, and what this processor's has
//! vcpu             one virtual CPU, and the CPU that has it loaded
//! vmcb             the control block
//! state            first contents: controls, guest state
//! npt              guest-physical memory
//! msr_permissions  which MSR accesses exit
//! run              VMRUN and #VMEXIT, the registers between them
//! exit             what an exit says
//! interrupt        injecting, windows, virtual interrupts, host interrupts that ended the guest's turn
//! device           accesses of the guest to a device or to CR8: found out, completed
//! defects          one of QEMU's VMRUN, and what is done instead
//! turn             bounding the guest's turn by the host's timer
//! smoke            the cases that try each of them alone
//! ```
//!
//! Nothing here knows what a local APIC is, beyond the interrupt fields of the control block.

pub(crate) mod capability;
mod defects;
pub(crate) mod device;
pub(crate) mod exit;
pub(crate) mod interrupt;
pub(crate) mod msr_permissions;
pub(crate) mod npt;
pub(crate) mod run;
pub(crate) mod smoke;
pub(crate) mod state;
pub(crate) mod turn;
pub(crate) mod vcpu;
pub(crate) mod vmcb;

use core::fmt;

pub(crate) use capability::Capability;
pub(crate) use exit::{Exit, Reason};
pub(crate) use vcpu::Vcpu;

use crate::machine::tables::TableError;

/// Why the SVM layer could not do what was asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub(crate) enum SvmError {
    /// CPUID reports no SVM.
    NoSvm,
    /// No nested paging.
    NoNestedPaging,
    /// VM_CR is locked with SVM off.
    LockedByFirmware,
    /// A mapping could not be made.
    Tables(TableError),
    /// VMRUN refused the control block: VMEXIT_INVALID.
    EntryRefused,
    /// The instruction at this RIP exited, and its length is not known.
    UnknownInstruction(u64),
}

impl From<TableError> for SvmError {
    fn from(error: TableError) -> Self {
        Self::Tables(error)
    }
}

impl fmt::Display for SvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSvm => f.write_str("no SVM"),
            Self::NoNestedPaging => f.write_str("no nested paging"),
            Self::LockedByFirmware => f.write_str("SVM is locked off by the firmware"),
            Self::Tables(error) => write!(f, "{error}"),
            Self::EntryRefused => f.write_str("VMRUN refused the control block"),
            Self::UnknownInstruction(rip) => {
                write!(f, "the instruction at {rip:#x} exited and is not known")
            }
        }
    }
}

impl core::error::Error for SvmError {}
