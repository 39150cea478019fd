//! What the processor says about itself.

use raw_cpuid::{CpuId, CpuIdResult};

/// Answers CPUID.
pub trait Cpuid {
    /// EAX, EBX, ECX and EDX for `leaf` (EAX) and `subleaf` (ECX).
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
}

impl<T: Cpuid + ?Sized> Cpuid for &T {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        (**self).cpuid(leaf, subleaf)
    }
}

impl<T: Cpuid + ?Sized> Cpuid for &mut T {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        (**self).cpuid(leaf, subleaf)
    }
}

/// What an interrupt controller driver asks of CPUID, as one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CpuFeatures {
    /// Who made the processor.
    pub vendor: Vendor,
    /// MAXPHYADDR: width of physical addresses in bits (leaf 8000_0008, EAX 7:0; 36 without it).
    pub physical_address_bits: u8,
    /// The local APIC has x2APIC mode (leaf 1, ECX 21).
    pub x2apic: bool,
    /// The local APIC's timer has TSC-deadline mode (leaf 1, ECX 24).
    pub tsc_deadline: bool,
    /// A hypervisor runs below (leaf 1, ECX 31, which no processor sets).
    pub hypervisor: bool,
    /// Intel VMX is there (leaf 1, ECX 5).
    pub vmx: bool,
    /// AMD SVM is there (leaf 8000_0001, ECX 2).
    pub svm: bool,
}

impl CpuFeatures {
    /// Reads them from `cpuid`.
    pub fn detect<C: Cpuid + ?Sized>(cpuid: &C) -> Self {
        let reader = CpuId::with_cpuid_reader(|leaf, subleaf| {
            let [eax, ebx, ecx, edx] = cpuid.cpuid(leaf, subleaf);
            CpuIdResult { eax, ebx, ecx, edx }
        });
        let vendor = reader.get_vendor_info();
        let leaf_1 = reader.get_feature_info();
        let extended = reader.get_extended_processor_and_feature_identifiers();
        let capacity = reader.get_processor_capacity_feature_info();
        Self {
            vendor: vendor.map_or(Vendor::Other, |vendor| Vendor::from_name(vendor.as_str())),
            physical_address_bits: capacity.map_or(36, |leaf| leaf.physical_address_bits()),
            x2apic: leaf_1.as_ref().is_some_and(|leaf| leaf.has_x2apic()),
            tsc_deadline: leaf_1.as_ref().is_some_and(|leaf| leaf.has_tsc_deadline()),
            hypervisor: leaf_1.as_ref().is_some_and(|leaf| leaf.has_hypervisor()),
            vmx: leaf_1.as_ref().is_some_and(|leaf| leaf.has_vmx()),
            svm: extended.is_some_and(|leaf| leaf.has_svm()),
        }
    }
}

/// Who made the processor, as far as its interrupt hardware goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`, or `HygonGenuine`, whose processors are AMD's design.
    Amd,
    /// Anyone else.
    Other,
}

impl Vendor {
    fn from_name(name: &str) -> Self {
        match name {
            "GenuineIntel" => Self::Intel,
            "AuthenticAMD" | "HygonGenuine" => Self::Amd,
            _ => Self::Other,
        }
    }
}
