//! What this processor's SVM can do for interrupts.

use core::convert::Infallible;

use bit_field::BitField;
use vlapic_core::Probe;
use vlapic_hal::{CpuFeatures, Cpuid, Vendor};

/// What CPUID says about AVIC and about what it stands on (APM Vol. 3, leaf 8000_000A). Whether
/// firmware has disabled SVM (VM_CR) is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// AVIC (EDX 13).
    pub avic: bool,
    /// x2AVIC (EDX 18); never without `avic`.
    pub x2avic: bool,
    /// x2AVIC tables of up to 4096 vCPUs (ECX 6); never without `x2avic`.
    pub x2avic_extended: bool,
    /// The extended LVT registers at 500 to 530 are in the page, and writes to them trap (EDX 27).
    pub extended_lvt: bool,
    /// Nested paging (EDX 0), which AVIC needs.
    pub nested_paging: bool,
    /// VMCB clean bits (EDX 5).
    pub vmcb_clean: bool,
    /// The address of the next instruction is saved on intercepts (EDX 3).
    pub next_rip: bool,
    /// Virtual GIF (EDX 16).
    pub vgif: bool,
    /// Virtual NMI (EDX 25).
    pub vnmi: bool,
    /// The idle-HLT intercept (EDX 30): HLT exits only if no virtual interrupt is pending.
    pub idle_hlt: bool,
    /// The host's own APICs have x2APIC mode (leaf 1, ECX 21).
    pub host_x2apic: bool,
    /// Erratum 1235 applies: hardware may use a stale IsRunning and miss exit 401, so an IPI to a
    /// vCPU that is not running is lost. AVIC can be used if IsRunning is never set in the
    /// physical APIC ID table. By family: 17h, and Hygon's 18h.
    pub erratum_1235: bool,
    /// With SEV-SNP on, the processor can write to pages that the hypervisor owns although another
    /// vCPU uses them (leaf 8000_001F, EAX 30).
    pub snp_writes_in_use_pages: bool,
    /// Physical address bits (leaf 8000_0008, EAX 7:0), held to 32..=52.
    pub address_bits: u8,
}

impl Capabilities {
    /// The highest guest physical APIC ID that xAVIC serves; 255 is the broadcast.
    pub const HIGHEST_XAVIC_ID: u16 = 0xfe;

    /// Reads them from `cpuid`. All are `false` on a processor without SVM and on those of other
    /// vendors.
    #[must_use]
    pub fn detect<C: Cpuid + ?Sized>(cpuid: &C) -> Self {
        let features = CpuFeatures::detect(cpuid);
        let [last_extended, ..] = cpuid.cpuid(0x8000_0000, 0);
        if features.vendor != Vendor::Amd || !features.svm || last_extended < SVM_LEAF {
            return Self::default();
        }
        let [_, _, ecx, edx] = cpuid.cpuid(SVM_LEAF, 0);
        let [signature, ..] = cpuid.cpuid(1, 0);
        let beyond = |leaf| if last_extended < leaf { 0 } else { cpuid.cpuid(leaf, 0)[0] };
        let avic = edx.get_bit(13);
        let x2avic = avic && edx.get_bit(18);
        Self {
            avic,
            x2avic,
            x2avic_extended: x2avic && ecx.get_bit(6),
            extended_lvt: edx.get_bit(27),
            nested_paging: edx.get_bit(0),
            vmcb_clean: edx.get_bit(5),
            next_rip: edx.get_bit(3),
            vgif: edx.get_bit(16),
            vnmi: edx.get_bit(25),
            idle_hlt: edx.get_bit(30),
            host_x2apic: features.x2apic,
            erratum_1235: matches!(family(signature), 0x17 | 0x18),
            snp_writes_in_use_pages: beyond(0x8000_001f).get_bit(30),
            address_bits: (beyond(0x8000_0008) as u8).clamp(32, 52),
        }
    }

    /// The highest guest physical APIC ID that x2AVIC serves: FFF with the extension, else 1FF.
    /// `None` without x2AVIC.
    #[must_use]
    pub const fn highest_x2avic_id(&self) -> Option<u16> {
        match (self.x2avic, self.x2avic_extended) {
            (false, _) => None,
            (true, false) => Some(0x1ff),
            (true, true) => Some(0xfff),
        }
    }
}

/// As [`Capabilities::detect`]: a processor without SVM has nothing, which is no error.
impl<M: Cpuid + ?Sized> Probe<M> for Capabilities {
    type Error = Infallible;

    fn probe(machine: &M) -> Result<Self, Infallible> {
        Ok(Self::detect(machine))
    }
}

const SVM_LEAF: u32 = 0x8000_000a;

/// The family in leaf 1's EAX: base family, and the extended one where the base is F.
fn family(signature: u32) -> u32 {
    match signature.get_bits(8..12) {
        0xf => 0xf + signature.get_bits(20..28),
        base => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlapic_hal::fake::FixedCpuid;

    const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
    const HYGON: [u32; 3] = [0x6f67_7948, 0x6e65_476e, 0x656e_6975];
    const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

    const ZEN2: u32 = 0x0083_0f10;
    const ZEN4: u32 = 0x00a1_0f11;
    const DHYANA: u32 = 0x0090_0f01;

    fn processor([a, b, c]: [u32; 3], signature: u32, ecx: u32, edx: u32) -> Capabilities {
        Capabilities::detect(&FixedCpuid(&[
            (0, 0, [0xd, a, c, b]),
            (1, 0, [signature, 0, 1 << 21, 0]),
            (0x8000_0000, 0, [0x8000_001f, a, c, b]),
            (0x8000_0001, 0, [signature, 0, 1 << 2, 0]),
            (0x8000_0008, 0, [0x3030, 0, 0, 0]),
            (SVM_LEAF, 0, [1, 0x8000, ecx, edx]),
        ]))
    }

    #[test]
    fn each_bit_is_its_own_capability() {
        let none = Capabilities { host_x2apic: true, address_bits: 48, ..Capabilities::default() };
        let with = |bit: u32| processor(AMD, ZEN4, 0, 1 << bit);
        assert_eq!(processor(AMD, ZEN4, 0, 0), none);
        assert_eq!(with(13), Capabilities { avic: true, ..none });
        assert_eq!(with(27), Capabilities { extended_lvt: true, ..none });
        assert_eq!(with(0), Capabilities { nested_paging: true, ..none });
        assert_eq!(with(5), Capabilities { vmcb_clean: true, ..none });
        assert_eq!(with(3), Capabilities { next_rip: true, ..none });
        assert_eq!(with(16), Capabilities { vgif: true, ..none });
        assert_eq!(with(25), Capabilities { vnmi: true, ..none });
        assert_eq!(with(30), Capabilities { idle_hlt: true, ..none });
    }

    #[test]
    fn extensions_need_what_they_extend() {
        let x2avic = 1 << 13 | 1 << 18;
        assert!(!processor(AMD, ZEN4, 0, 1 << 18).x2avic);
        assert!(!processor(AMD, ZEN4, 1 << 6, 1 << 13).x2avic_extended);
        let highest = |ecx, edx| processor(AMD, ZEN4, ecx, edx).highest_x2avic_id();
        assert_eq!(highest(1 << 6, 1 << 13), None);
        assert_eq!(highest(0, x2avic), Some(0x1ff));
        assert_eq!(highest(1 << 6, x2avic), Some(0xfff));
    }

    #[test]
    fn erratum_1235_by_family() {
        let erratum = |vendor, signature| processor(vendor, signature, 0, 1 << 13).erratum_1235;
        assert!(erratum(AMD, ZEN2));
        assert!(erratum(HYGON, DHYANA));
        assert!(!erratum(AMD, ZEN4));
        assert!(!erratum(AMD, 0x0600_0720), "a base family below F has no extension");
    }

    #[test]
    fn nothing_without_svm() {
        assert_eq!(processor(INTEL, ZEN4, u32::MAX, u32::MAX), Capabilities::default());
        let [a, b, c] = AMD;
        let leaf_0 = (0, 0, [0xd, a, c, b]);
        let full = (SVM_LEAF, 0, [1, 0x8000, u32::MAX, u32::MAX]);
        let no_svm = [leaf_0, (0x8000_0000, 0, [0x8000_001f, 0, 0, 0]), full];
        assert_eq!(Capabilities::detect(&FixedCpuid(&no_svm)), Capabilities::default());
        let svm = (0x8000_0001, 0, [ZEN4, 0, 1 << 2, 0]);
        let no_leaf = [leaf_0, svm, (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]), full];
        assert_eq!(Capabilities::detect(&FixedCpuid(&no_leaf)), Capabilities::default());
    }
}
