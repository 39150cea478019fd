use crate::Cpuid;

/// A table of (leaf, subleaf, EAX to EDX). What is not in the table reads as zeroes.
///
/// ```
/// use vlapic_hal::fake::FixedCpuid;
/// use vlapic_hal::{CpuFeatures, Vendor};
///
/// let cpuid = FixedCpuid(&[
///     (0, 0, [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]), // GenuineIntel, leaves 0 and 1
///     (1, 0, [0, 0, 1 << 21, 0]),                         // x2APIC
/// ]);
/// let features = CpuFeatures::detect(&cpuid);
/// assert_eq!(features.vendor, Vendor::Intel);
/// assert!(features.x2apic);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FixedCpuid<'a>(pub &'a [(u32, u32, [u32; 4])]);

impl Cpuid for FixedCpuid<'_> {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut rows = self.0.iter();
        rows.find(|row| (row.0, row.1) == (leaf, subleaf)).map_or([0; 4], |row| row.2)
    }
}
