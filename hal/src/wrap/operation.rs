//! One call of a trait, as a value.

use core::fmt;

use crate::{MsrError, PhysAddr, SendError, VmcsError, VmcsField};

/// One call of one of this crate's traits, with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the arguments of the call named")]
pub enum Operation {
    /// [`ReadMsr::read_msr`](crate::ReadMsr::read_msr)
    ReadMsr { msr: u32, result: Result<u64, MsrError> },
    /// [`WriteMsr::write_msr`](crate::WriteMsr::write_msr)
    WriteMsr { msr: u32, value: u64, result: Result<(), MsrError> },
    /// [`Vmcs::read`](crate::Vmcs::read)
    ReadVmcs { field: VmcsField, result: Result<u64, VmcsError> },
    /// [`Vmcs::write`](crate::Vmcs::write)
    WriteVmcs { field: VmcsField, value: u64, result: Result<(), VmcsError> },
    /// [`SendInterrupt::send_interrupt`](crate::SendInterrupt::send_interrupt)
    SendInterrupt { destination: u32, vector: u8, result: Result<(), SendError> },
    /// [`Doorbell::ring`](crate::Doorbell::ring)
    Ring { destination: u32, result: Result<(), SendError> },
    /// [`Clock::now`](crate::Clock::now)
    Now { ticks: u64 },
    /// [`Translate::physical_address`](crate::Translate::physical_address)
    PhysicalAddress { result: Option<PhysAddr> },
    /// [`Cpuid::cpuid`](crate::Cpuid::cpuid)
    Cpuid { leaf: u32, subleaf: u32, registers: [u32; 4] },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ReadMsr { msr, result } => {
                write!(f, "rdmsr {msr:#x}: ")?;
                value_or(f, result)
            }
            Self::WriteMsr { msr, value, result } => {
                write!(f, "wrmsr {msr:#x} {value:#x}: ")?;
                done_or(f, result)
            }
            Self::ReadVmcs { field, result } => {
                write!(f, "vmread {field}: ")?;
                value_or(f, result)
            }
            Self::WriteVmcs { field, value, result } => {
                write!(f, "vmwrite {field} {value:#x}: ")?;
                done_or(f, result)
            }
            Self::SendInterrupt { destination, vector, result } => {
                write!(f, "send {vector:#x} to {destination:#x}: ")?;
                done_or(f, result)
            }
            Self::Ring { destination, result } => {
                write!(f, "ring {destination:#x}: ")?;
                done_or(f, result)
            }
            Self::Now { ticks } => write!(f, "now: {ticks}"),
            Self::PhysicalAddress { result: Some(address) } => {
                write!(f, "physical address: {address}")
            }
            Self::PhysicalAddress { result: None } => f.write_str("physical address: none"),
            Self::Cpuid { leaf, subleaf, registers: [eax, ebx, ecx, edx] } => {
                write!(f, "cpuid {leaf:#x} {subleaf:#x}: {eax:#x} {ebx:#x} {ecx:#x} {edx:#x}")
            }
        }
    }
}

fn value_or<E: fmt::Display>(f: &mut fmt::Formatter<'_>, result: Result<u64, E>) -> fmt::Result {
    match result {
        Ok(value) => write!(f, "{value:#x}"),
        Err(error) => write!(f, "{error}"),
    }
}

fn done_or<E: fmt::Display>(f: &mut fmt::Formatter<'_>, result: Result<(), E>) -> fmt::Result {
    match result {
        Ok(()) => f.write_str("ok"),
        Err(error) => write!(f, "{error}"),
    }
}
