//! Model-specific registers.

use core::error::Error;
use core::fmt;

/// Reads model-specific registers of the calling CPU.
pub trait ReadMsr {
    /// The 64 bits of `msr`, as RDMSR gives them in EDX:EAX.
    ///
    /// # Errors
    /// [`MsrError`] if the register cannot be read. An implementation that cannot catch #GP never
    /// returns one; its callers read only registers that the processor is known to have.
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError>;
}

/// Writes model-specific registers of the calling CPU.
pub trait WriteMsr {
    /// Writes `value` to `msr`, as WRMSR does.
    ///
    /// WRMSR is not a serialising instruction for every register: stores made before it may become
    /// visible after it where `msr` is in the x2APIC range (SDM vol. 3, "MSR Access in x2APIC
    /// Mode"). An implementation adds no fence.
    ///
    /// # Errors
    /// [`MsrError`] if the register cannot be written or refuses the value, with the same limit as
    /// [`ReadMsr::read_msr`].
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError>;
}

/// Why a model-specific register was not read or written. Each variant holds the register's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MsrError {
    /// RDMSR or WRMSR raised #GP(0): no such register, or a value with reserved bits set.
    GeneralProtection(u32),
    /// The implementation does not offer this register, whatever the processor has.
    Unavailable(u32),
}

impl MsrError {
    /// The number of the register that was asked for.
    pub const fn msr(self) -> u32 {
        match self {
            Self::GeneralProtection(msr) | Self::Unavailable(msr) => msr,
        }
    }
}

impl fmt::Display for MsrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GeneralProtection(msr) => write!(f, "access to MSR {msr:#x} raised #GP"),
            Self::Unavailable(msr) => write!(f, "MSR {msr:#x} is not available here"),
        }
    }
}

impl Error for MsrError {}

impl<T: ReadMsr + ?Sized> ReadMsr for &T {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        (**self).read_msr(msr)
    }
}

impl<T: ReadMsr + ?Sized> ReadMsr for &mut T {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        (**self).read_msr(msr)
    }
}

impl<T: WriteMsr + ?Sized> WriteMsr for &mut T {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        (**self).write_msr(msr, value)
    }
}
