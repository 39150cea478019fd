use crate::{MsrError, ReadMsr, WriteMsr};

/// A table of (number, value), for reading only: what capability detection needs.
///
/// ```
/// use vlapic_hal::fake::FixedMsrs;
/// use vlapic_hal::{MsrError, ReadMsr};
///
/// let msrs = FixedMsrs(&[(0x480, 0x00da_0400_0000_0004)]);
/// assert_eq!(msrs.read_msr(0x480), Ok(0x00da_0400_0000_0004));
/// assert_eq!(msrs.read_msr(0x48b), Err(MsrError::Unavailable(0x48b)));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FixedMsrs<'a>(pub &'a [(u32, u64)]);

impl ReadMsr for FixedMsrs<'_> {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        find(self.0, msr).ok_or(MsrError::Unavailable(msr))
    }
}

/// `N` registers that keep what is written. There are no others.
///
/// ```
/// use vlapic_hal::fake::MemoryMsrs;
/// use vlapic_hal::{MsrError, ReadMsr, WriteMsr};
///
/// let mut msrs = MemoryMsrs([(0x1b, 0xfee0_0900)]);
/// msrs.write_msr(0x1b, 0xfee0_0d00)?;
/// assert_eq!(msrs.read_msr(0x1b), Ok(0xfee0_0d00));
/// assert_eq!(msrs.write_msr(0x830, 0), Err(MsrError::Unavailable(0x830)));
/// # Ok::<(), MsrError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MemoryMsrs<const N: usize>(pub [(u32, u64); N]);

impl<const N: usize> ReadMsr for MemoryMsrs<N> {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        find(&self.0, msr).ok_or(MsrError::Unavailable(msr))
    }
}

impl<const N: usize> WriteMsr for MemoryMsrs<N> {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        let mut registers = self.0.iter_mut();
        let register = registers.find(|register| register.0 == msr);
        let register = register.ok_or(MsrError::Unavailable(msr))?;
        register.1 = value;
        Ok(())
    }
}

fn find(table: &[(u32, u64)], msr: u32) -> Option<u64> {
    let row = table.iter().find(|row| row.0 == msr);
    row.map(|row| row.1)
}
