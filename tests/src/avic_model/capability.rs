//! What the modelled processor says it can do.

use vlapic_hal::Cpuid;

/// A processor as CPUID describes it: a set of features that can be taken away one by one.
///
/// VMRUN checks and the handling of accesses ask the same set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    features: u32,
    /// Width of physical addresses, in bits.
    pub physical_width: u32,
    /// Family as software computes it (base plus extended): 17h for Zen and Zen 2, 19h for Zen 3 and Zen 4.
    pub family: u32,
    /// Whether the vendor is Hygon, whose processors are AMD's design.
    pub hygon: bool,
}

/// A feature that a processor may or may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Feature {
    Svm,
    NestedPaging,
    NextRip,
    VmcbClean,
    Avic,
    VirtualGif,
    X2Avic,
    VirtualNmi,
    /// Extended LVT registers can be read, and trap on write.
    ExtendedLvtAvicAccess,
    IdleHlt,
    /// x2AVIC with up to 4096 vCPUs.
    X2AvicExtension,
    /// The physical local APIC has x2APIC mode.
    X2Apic,
    SecureNestedPaging,
    /// Software may write pages that hypervisor-owned structures are in.
    HypervisorInUseWriteAllowed,
}

impl Capability {
    /// A processor with everything the model knows.
    #[must_use]
    pub const fn full() -> Self {
        Self::x2avic().with(Feature::X2AvicExtension).with(Feature::IdleHlt)
    }

    /// A processor with x2AVIC for 512 vCPUs.
    #[must_use]
    pub const fn x2avic() -> Self {
        let mut capability = Self::avic();
        capability.family = 0x19;
        capability
            .with(Feature::X2Avic)
            .with(Feature::VirtualNmi)
            .with(Feature::ExtendedLvtAvicAccess)
    }

    /// A processor with AVIC and without x2AVIC, of the family that has erratum 1235.
    #[must_use]
    pub const fn avic() -> Self {
        Self::svm().with(Feature::Avic)
    }

    /// A processor without AVIC.
    #[must_use]
    pub const fn svm() -> Self {
        Capability { features: 0, physical_width: 48, family: 0x17, hygon: false }
            .with(Feature::Svm)
            .with(Feature::NestedPaging)
            .with(Feature::NextRip)
            .with(Feature::VmcbClean)
            .with(Feature::VirtualGif)
            .with(Feature::X2Apic)
    }

    /// The same processor with one feature added.
    #[must_use]
    pub const fn with(mut self, feature: Feature) -> Self {
        self.features |= 1 << feature as u32;
        self
    }

    /// The same processor with one feature taken away; nothing else changes, even if no real processor is so.
    #[must_use]
    pub const fn without(mut self, feature: Feature) -> Self {
        self.features &= !(1 << feature as u32);
        self
    }

    /// The same processor in another family, as software computes it.
    #[must_use]
    pub const fn in_family(mut self, family: u32) -> Self {
        self.family = family;
        self
    }

    /// The same processor made by Hygon.
    #[must_use]
    pub const fn of_hygon(mut self) -> Self {
        self.hygon = true;
        self
    }

    /// Whether the processor has a feature.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.features & (1 << feature as u32) != 0
    }

    /// Whether an address has no bit above the implemented ones.
    pub(super) const fn is_physical(self, address: u64) -> bool {
        address >> self.physical_width == 0
    }

    fn bit(self, feature: Feature, bit: u32) -> u32 {
        u32::from(self.has(feature)) << bit
    }

    /// EAX of leaf 1: base family Fh in 11:8, the rest in 27:20.
    fn signature(self) -> u32 {
        0xf << 8 | (self.family - 0xf) << 20
    }
}

impl Cpuid for Capability {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> [u32; 4] {
        use Feature as F;
        match leaf {
            // "HygonGenuine", "AuthenticAMD".
            0 | 0x8000_0000 if self.hygon => {
                [last_leaf(leaf), 0x6f67_7948, 0x656e_6975, 0x6e65_476e]
            }
            0 | 0x8000_0000 => [last_leaf(leaf), 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            1 => [self.signature(), 0, self.bit(F::X2Apic, 21), 1 << 9],
            0x8000_0001 => [self.signature(), 0, self.bit(F::Svm, 2), 0],
            0x8000_0008 => [self.physical_width | 48 << 8, 0, 0, 0],
            0x8000_000a if self.has(F::Svm) => {
                let ecx = self.bit(F::X2AvicExtension, 6);
                let edx = self.bit(F::NestedPaging, 0)
                    | self.bit(F::NextRip, 3)
                    | self.bit(F::VmcbClean, 5)
                    | self.bit(F::Avic, 13)
                    | self.bit(F::VirtualGif, 16)
                    | self.bit(F::X2Avic, 18)
                    | self.bit(F::VirtualNmi, 25)
                    | self.bit(F::ExtendedLvtAvicAccess, 27)
                    | self.bit(F::IdleHlt, 30);
                [1, 0x8000, ecx, edx]
            }
            0x8000_001f => {
                let eax = self.bit(F::SecureNestedPaging, 4)
                    | self.bit(F::HypervisorInUseWriteAllowed, 30);
                [eax, 0, 0, 0]
            }
            _ => [0; 4],
        }
    }
}

fn last_leaf(leaf: u32) -> u32 {
    if leaf == 0 { 0xd } else { 0x8000_001f }
}
