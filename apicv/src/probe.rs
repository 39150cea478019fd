//! The processor asked for its capabilities in the way that all vendors' crates have in common.

use core::error::Error;
use core::fmt;

use vlapic_core::Probe;
use vlapic_hal::{CpuFeatures, Cpuid, MsrError, ReadMsr};

use crate::capability::Capabilities;

/// Makes sure by CPUID that there is VMX, then reads the MSRs, at CPL 0. Physical addresses are as wide as
/// CPUID says.
impl<M: Cpuid + ReadMsr + ?Sized> Probe<M> for Capabilities {
    type Error = ProbeError;

    fn probe(machine: &M) -> Result<Self, ProbeError> {
        let features = CpuFeatures::detect(machine);
        if !features.vmx {
            return Err(ProbeError::NoVmx);
        }
        let capabilities = Self::detect(machine).map_err(ProbeError::Msr)?;
        Ok(capabilities.with_physical_address_bits(features.physical_address_bits))
    }
}

/// Why the processor's capabilities could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// CPUID says that there is no VMX.
    NoVmx,
    /// A capability MSR could not be read.
    Msr(MsrError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx => f.write_str("the processor has no VMX"),
            Self::Msr(error) => error.fmt(f),
        }
    }
}

impl Error for ProbeError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::SAPPHIRE_RAPIDS;
    use vlapic_hal::fake::{FixedCpuid, FixedMsrs};

    struct Processor(&'static [(u32, u32, [u32; 4])], &'static [(u32, u64)]);

    impl Cpuid for Processor {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
            FixedCpuid(self.0).cpuid(leaf, subleaf)
        }
    }

    impl ReadMsr for Processor {
        fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
            FixedMsrs(self.1).read_msr(msr)
        }
    }

    const LEAVES: [(u32, u32, [u32; 4]); 4] = [
        (0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        (1, 0, [0x0008_06f8, 0, 1 << 5, 0]),
        (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        (0x8000_0008, 0, [46, 0, 0, 0]),
    ];

    #[test]
    fn cpuid_is_asked_first() {
        let probe = |leaves, msrs| Capabilities::probe(&Processor(leaves, msrs));
        let found = probe(&LEAVES, &SAPPHIRE_RAPIDS).unwrap();
        let detected = Capabilities::detect(&FixedMsrs(&SAPPHIRE_RAPIDS)).unwrap();
        assert_eq!(found, detected.with_physical_address_bits(46));
        const NO_VMX: [(u32, u32, [u32; 4]); 2] = [LEAVES[0], (1, 0, [0x0008_06f8, 0, 0, 0])];
        assert_eq!(
            probe(&NO_VMX, &SAPPHIRE_RAPIDS),
            Err(ProbeError::NoVmx),
            "MSRs are not touched"
        );
        assert!(matches!(probe(&LEAVES, &[]), Err(ProbeError::Msr(_))));
    }
}
