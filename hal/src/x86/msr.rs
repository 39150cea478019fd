//! RDMSR and WRMSR.

use crate::{MsrError, ReadMsr, WriteMsr};

/// The model-specific registers of the CPU that makes the call.
///
/// Never returns an error: an access that the processor refuses raises #GP, which the host's own
/// handler sees. A hypervisor whose handler recovers from that implements the traits itself.
#[derive(Debug)]
pub struct Msrs {
    _built_by_new: (),
}

impl Msrs {
    /// The registers of whichever CPU makes the call.
    ///
    /// # Safety
    /// For as long as the value is used:
    /// - the code runs at CPL 0 (SDM vol. 2, RDMSR and WRMSR: #GP(0) otherwise);
    /// - every register read exists on the processor, or the host survives the #GP;
    /// - no value written makes the processor break the rules of memory that the rest of the
    ///   program relies on. Reads change nothing, so lending `&Msrs` lends no such power.
    pub const unsafe fn new() -> Self {
        Self { _built_by_new: () }
    }
}

impl ReadMsr for Msrs {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        // SAFETY: RDMSR needs CPL 0 and an existing register, else it raises #GP(0) (SDM vol. 2,
        // RDMSR). The caller of `Msrs::new` vouched for both. It writes EDX:EAX only.
        Ok(unsafe { ::x86::msr::rdmsr(msr) })
    }
}

impl WriteMsr for Msrs {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        // SAFETY: WRMSR needs CPL 0, an existing register and a value without reserved bits, else
        // it raises #GP(0) (SDM vol. 2, WRMSR). The caller of `Msrs::new` vouched for CPL 0 and for
        // every value that the holders of `&mut Msrs` write.
        unsafe { ::x86::msr::wrmsr(msr, value) };
        Ok(())
    }
}
