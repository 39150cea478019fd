//! CPUID.

use crate::Cpuid;

/// The CPUID instruction of the CPU that makes the call.
///
/// ```
/// use vlapic_hal::CpuFeatures;
/// use vlapic_hal::x86::NativeCpuid;
///
/// let features = CpuFeatures::detect(&NativeCpuid);
/// assert!(features.physical_address_bits >= 32);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeCpuid;

impl Cpuid for NativeCpuid {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }
}
