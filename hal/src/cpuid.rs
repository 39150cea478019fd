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
    /// AMD SVM is there (leaf 8000_0001, ECX 2, on AMD's processors).
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaf 0, leaf 1 (ECX only), 8000_0001 (ECX only), 8000_0008 (EAX only).
    struct Processor {
        name: &'static [u8; 12],
        leaf_1_ecx: u32,
        last_extended: u32,
        extended_ecx: u32,
        capacity_eax: u32,
    }

    impl Processor {
        fn name_word(&self, first: usize) -> u32 {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.name[first..first + 4]);
            u32::from_le_bytes(bytes)
        }
    }

    impl Cpuid for Processor {
        fn cpuid(&self, leaf: u32, _subleaf: u32) -> [u32; 4] {
            match leaf {
                0 => [1, self.name_word(0), self.name_word(8), self.name_word(4)],
                1 => [0, 0, self.leaf_1_ecx, 0],
                0x8000_0000 => [self.last_extended, 0, 0, 0],
                0x8000_0001 => [0, 0, self.extended_ecx, 0],
                0x8000_0008 => [self.capacity_eax, 0, 0, 0],
                _ => [0; 4],
            }
        }
    }

    const INTEL: Processor = Processor {
        name: b"GenuineIntel",
        leaf_1_ecx: 0,
        last_extended: 0x8000_0008,
        extended_ecx: 0,
        capacity_eax: 0x3027,
    };

    #[test]
    fn each_bit_is_its_own_feature() {
        let none = CpuFeatures {
            vendor: Vendor::Intel,
            physical_address_bits: 0x27,
            x2apic: false,
            tsc_deadline: false,
            hypervisor: false,
            vmx: false,
            svm: false,
        };
        let with = |bit: u32| CpuFeatures::detect(&Processor { leaf_1_ecx: 1 << bit, ..INTEL });
        assert_eq!(CpuFeatures::detect(&INTEL), none);
        assert_eq!(with(5), CpuFeatures { vmx: true, ..none });
        assert_eq!(with(21), CpuFeatures { x2apic: true, ..none });
        assert_eq!(with(24), CpuFeatures { tsc_deadline: true, ..none });
        assert_eq!(with(31), CpuFeatures { hypervisor: true, ..none });
        assert!(!with(2).svm, "that bit means something else in leaf 1");
    }

    #[test]
    fn svm_is_amd_s() {
        let svm = |name| {
            let processor = Processor { name, extended_ecx: 1 << 2, ..INTEL };
            CpuFeatures::detect(&processor).svm
        };
        assert!(svm(b"AuthenticAMD"));
        assert!(!svm(b"GenuineIntel"));
    }

    #[test]
    fn vendors() {
        let vendor = |name| CpuFeatures::detect(&Processor { name, ..INTEL }).vendor;
        assert_eq!(vendor(b"GenuineIntel"), Vendor::Intel);
        assert_eq!(vendor(b"AuthenticAMD"), Vendor::Amd);
        assert_eq!(vendor(b"HygonGenuine"), Vendor::Amd);
        assert_eq!(vendor(b"  Shanghai  "), Vendor::Other);
        assert_eq!(vendor(&[0xff; 12]), Vendor::Other);
    }

    #[test]
    fn addresses_are_36_bits_wide_without_the_leaf() {
        let old = Processor { last_extended: 0x8000_0004, ..INTEL };
        assert_eq!(CpuFeatures::detect(&old).physical_address_bits, 36);
    }
}
