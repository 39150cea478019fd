//! Where the two APICs are not the same.

use core::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// One faulted.
    Fault { ours: bool, machine: bool },
    /// The value that was read.
    Value { offset: u16, ours: u64, machine: u64 },
    /// A register, afterwards.
    Register { offset: u16, ours: u64, machine: u64 },
    /// CR8, afterwards.
    Cr8 { ours: u64, machine: u64 },
    /// IA32_APIC_BASE, afterwards.
    Base { ours: u64, machine: u64 },
    /// IA32_TSC_DEADLINE, afterwards.
    Deadline { ours: Option<u64>, machine: Option<u64> },
    /// The interrupt that was taken.
    Taken { ours: Option<u8>, machine: Option<u8> },
    /// NMIs that arrived.
    Nmis { ours: u64, machine: u64 },
    /// How often another CPU got a vector.
    Remote { cpu: usize, vector: u8, ours: u64, machine: u64 },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { ours, machine } => write!(f, "fault: ours {ours}, machine {machine}"),
            Self::Value { offset, ours, machine } => {
                write!(f, "read of {offset:#x}: ours {ours:#x}, machine {machine:#x}")
            }
            Self::Register { offset, ours, machine } => {
                write!(f, "register {offset:#x}: ours {ours:#x}, machine {machine:#x}")
            }
            Self::Cr8 { ours, machine } => write!(f, "CR8: ours {ours:#x}, machine {machine:#x}"),
            Self::Base { ours, machine } => {
                write!(f, "APIC_BASE: ours {ours:#x}, machine {machine:#x}")
            }
            Self::Deadline { ours, machine } => {
                write!(f, "TSC_DEADLINE: ours {ours:x?}, machine {machine:x?}")
            }
            Self::Taken { ours, machine } => {
                write!(f, "taken: ours {ours:x?}, machine {machine:x?}")
            }
            Self::Nmis { ours, machine } => write!(f, "NMIs: ours {ours}, machine {machine}"),
            Self::Remote { cpu, vector, ours, machine } => {
                write!(f, "vector {vector:#x} on cpu {cpu}: ours {ours}, machine {machine}")
            }
        }
    }
}

impl Difference {
    /// Whether both are about the same thing: what a shorter sequence has to show as well.
    pub(super) fn same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Register { offset: a, .. }, Self::Register { offset: b, .. })
            | (Self::Value { offset: a, .. }, Self::Value { offset: b, .. }) => a == b,
            _ => core::mem::discriminant(self) == core::mem::discriminant(other),
        }
    }
}
