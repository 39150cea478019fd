//! The example hypervisor: what an integrator writes around `apicv` and `avic`.
//!
//! ```text
//! vm      a VM, and who is told of what
//! apics   the APICs of a VM
//! memory  its guest-physical memory
//! vcpu    the loop of one vCPU on VT-x: before entry, enter, after exit
//! access  guest accesses that exit there: the register window, MSRs, CR8
//! svm     what the loop of a vCPU on SVM needs; the loop itself is in `vlapic-svm-loop`, which the tests run as well
//! calls   what hypercalls do
//! sleep   HLT, wait-for-SIPI, and waking
//! meter   what the driver's part of it costs
//! level   how much hardware help a VM asks for
//! ```
//!
//! Everything about the APIC is the driver's. What stands here is what every hypervisor has anyway: physical interrupts,
//! timers, instruction decoding, the state of the guest's other registers.

pub(crate) mod access;
mod apics;
mod calls;
pub(crate) mod level;
mod memory;
pub(crate) mod meter;
mod reference;
pub(crate) mod sleep;
mod storage;
mod svm;
pub(crate) mod vcpu;
pub(crate) mod vm;

pub(crate) use apics::AnySlot;
pub(crate) use level::Level;
pub(crate) use reference::reference_slots;
pub(crate) use svm::available as avic_available;
pub(crate) use vm::{Config, VirtualMachine};

use core::fmt;

use apicv::ProgramError;
use avic::TableError;
use vlapic_core::Next;
use vlapic_hal::VmcsError;
use vlapic_svm_loop::NotGranted;

use crate::svm::SvmError;
use crate::vmx::{Reason, VmxError};

/// Why a vCPU could not run on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HypervisorError {
    /// The VMX layer failed.
    Vmx(VmxError),
    /// The SVM layer failed.
    Svm(SvmError),
    /// The driver could not program the VMCS.
    Program(ProgramError),
    /// The processor does not grant what the level is made of.
    NotGranted(Level),
    /// An exit that nothing here knows.
    UnknownExit { reason: Reason, qualification: u64 },
    /// The same on SVM.
    UnknownSvmExit { code: u64, info_1: u64, info_2: u64 },
    /// The same, of AVIC.
    NoAvic(NotGranted),
    /// The tables of AVIC could not be made.
    Tables(TableError),
    /// The driver of AVIC asks for something that nobody here knows.
    Entry(Next),
    /// The guest took an exception that nobody expected.
    GuestFault { vector: u8, error_code: u32, rip: u64 },
    /// A guest-physical address that is neither memory nor the register window.
    NoDevice(u64),
    /// An instruction at the register window that the decoder does not know.
    NotDecoded,
    /// The vCPU was told to stop before its program had finished.
    Stopped,
}

impl From<VmxError> for HypervisorError {
    fn from(error: VmxError) -> Self {
        Self::Vmx(error)
    }
}

impl From<SvmError> for HypervisorError {
    fn from(error: SvmError) -> Self {
        Self::Svm(error)
    }
}

impl From<TableError> for HypervisorError {
    fn from(error: TableError) -> Self {
        Self::Tables(error)
    }
}

impl From<VmcsError> for HypervisorError {
    fn from(error: VmcsError) -> Self {
        Self::Vmx(VmxError::Vmcs(error))
    }
}

impl From<ProgramError> for HypervisorError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl fmt::Display for HypervisorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(error) => write!(f, "{error}"),
            Self::Svm(error) => write!(f, "{error}"),
            Self::Program(error) => write!(f, "{error}"),
            Self::NotGranted(level) => write!(f, "the processor does not grant {}", level.name()),
            Self::UnknownExit { reason, qualification } => {
                write!(f, "unknown exit {reason:?}, qualification {qualification:#x}")
            }
            Self::UnknownSvmExit { code, info_1, info_2 } => {
                write!(f, "unknown exit {code:#x}, information {info_1:#x} and {info_2:#x}")
            }
            Self::NoAvic(NotGranted { feature, reason }) => {
                write!(f, "the processor does not grant {feature}: {reason}")
            }
            Self::Tables(error) => write!(f, "{error}"),
            Self::Entry(next) => write!(f, "nobody here knows {next:?}"),
            Self::GuestFault { vector, error_code, rip } => {
                write!(f, "guest exception {vector}, error code {error_code:#x}, at {rip:#x}")
            }
            Self::NoDevice(address) => write!(f, "no device at {address:#x}"),
            Self::NotDecoded => f.write_str("an instruction at the register window is not decoded"),
            Self::Stopped => f.write_str("stopped before its program had finished"),
        }
    }
}
