//! The VMX layer of the example hypervisor: everything between `VMXON` and the APIC.
//!
//! ```text
//! capability  VMX on, and which controls this processor has
//! vcpu        one virtual CPU, and the CPU that has it loaded
//! vmcs        the region, and VMREAD/VMWRITE of its fields
//! state       first contents: controls, host state, guest state
//! ept         guest-physical memory
//! msr_bitmap  which MSR accesses exit, where no driver keeps a list
//! run         VM entry and exit, the registers between them
//! exit        what an exit says
//! interrupt   injecting, windows, timers, host interrupts that ended the guest's turn
//! device      the access to a device that the guest is at: fetch, decode, complete
//! smoke       the cases that try each of them alone
//! ```
//!
//! Nothing here knows what a local APIC is. That is what `apicv` and `vlapic-core` are for.

pub(crate) mod capability;
pub(crate) mod device;
pub(crate) mod ept;
pub(crate) mod exit;
pub(crate) mod interrupt;
pub(crate) mod msr_bitmap;
pub(crate) mod run;
pub(crate) mod smoke;
pub(crate) mod state;
pub(crate) mod vcpu;
pub(crate) mod vmcs;

use core::fmt;

use vlapic_hal::VmcsError;

pub(crate) use capability::{Allowed, Capability};
pub(crate) use exit::{Exit, Reason};
pub(crate) use vcpu::Vcpu;

use crate::machine::tables::TableError;

/// Why the VMX layer could not do what was asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub(crate) enum VmxError {
    /// CPUID reports no VMX.
    NoVmx,
    /// No extended page tables, or not with what is used of them.
    NoEpt,
    /// IA32_FEATURE_CONTROL is locked with VMX off.
    LockedByFirmware,
    /// Controls that are needed cannot be 1 on this processor.
    ControlsMissing {
        /// What the capability MSR allows.
        allowed: Allowed,
        /// The bits that are needed and not allowed.
        missing: u32,
    },
    /// A mapping could not be made.
    Tables(TableError),
    /// VMXON, VMCLEAR or VMPTRLD failed for the region at this address.
    Region(u64),
    /// VMREAD or VMWRITE failed.
    Vmcs(VmcsError),
    /// VMLAUNCH or VMRESUME failed: VM-instruction error (SDM Vol. 3C 31.4), or none when no VMCS is current.
    EntryRefused(Option<u32>),
    /// The entry was begun and failed on the guest state or MSR loading.
    EntryFailed {
        /// Basic exit reason: 33 guest state, 34 MSR loading, 41 machine check.
        reason: u16,
        /// Exit qualification.
        qualification: u64,
    },
}

impl From<TableError> for VmxError {
    fn from(error: TableError) -> Self {
        Self::Tables(error)
    }
}

impl From<VmcsError> for VmxError {
    fn from(error: VmcsError) -> Self {
        Self::Vmcs(error)
    }
}

impl fmt::Display for VmxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx => f.write_str("no VMX"),
            Self::NoEpt => f.write_str("no EPT"),
            Self::LockedByFirmware => f.write_str("VMX is locked off by the firmware"),
            Self::ControlsMissing { allowed, missing } => {
                write!(f, "controls {missing:#x} are not among {:#x}", allowed.may_be_one)
            }
            Self::Tables(error) => write!(f, "{error}"),
            Self::Region(address) => write!(f, "VMX region {address:#x} refused"),
            Self::Vmcs(error) => write!(f, "{error}"),
            Self::EntryRefused(None) => f.write_str("VM entry without a current VMCS"),
            Self::EntryRefused(Some(error)) => write!(f, "VM entry refused, error {error}"),
            Self::EntryFailed { reason, qualification } => {
                write!(f, "VM entry failed, reason {reason}, qualification {qualification:#x}")
            }
        }
    }
}

impl core::error::Error for VmxError {}
