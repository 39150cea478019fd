//! The VMs that are asked.

use vlapic_core::{ClockRatio, Mode, Profile};

/// One kind of VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// The vCPUs' x2APIC IDs, ascending.
    pub(super) ids: &'static [u32],
    /// The kernel has the local APICs only and tells user space of EOIs; else it has an I/O APIC and
    /// an 8259 as well.
    pub(super) split: bool,
    /// Ours lets the guest rewrite its xAPIC ID, as the kernel does; else not, as recent parts.
    pub(super) writable_id: bool,
}

/// How the vCPUs of a round begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    XApic,
    X2Apic,
    /// Every other vCPU in the other mode.
    Mixed,
}

const DENSE: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7];
/// Several clusters, and IDs that xAPIC mode has no room for.
const SPARSE: &[u32] = &[0, 1, 5, 0x10, 0x13, 0x2F, 0x105, 0x3FE];

impl Setup {
    /// All kinds.
    pub(super) fn all() -> Vec<Self> {
        let dense = |vcpus, split, writable_id| Self { ids: &DENSE[..vcpus], split, writable_id };
        let mut all: Vec<_> =
            (1..=8).map(|vcpus| dense(vcpus, vcpus % 2 == 0, vcpus % 4 < 2)).collect();
        all.push(dense(3, true, true));
        all.push(dense(4, false, false));
        all.push(Self { ids: SPARSE, split: true, writable_id: false });
        all
    }

    /// The model that the kernel's APIC is closest to.
    pub(super) const fn profile(&self, physical_address_bits: u8) -> Profile {
        Profile::intel()
            .with_cmci(false)
            .with_eoi_suppression(self.split)
            .with_writable_xapic_id(self.writable_id)
            .with_physical_address_bits(physical_address_bits)
            .with_timer_clock(ClockRatio { tsc: 1, bus: 1 })
    }

    /// Whether vCPU IDs above 255 are there: such a VM is not started in xAPIC mode.
    pub(super) fn wide(&self) -> bool {
        self.ids.iter().any(|&id| id > 0xFF)
    }

    /// Version register of the kernel: its own version number; LVT entries and bit 24 as ours.
    pub(super) const fn kernel_version(&self) -> u32 {
        0x14 | 5 << 16 | (self.split as u32) << 24
    }
}

impl Start {
    pub(super) const fn mode(self, vcpu: usize) -> Mode {
        match self {
            Self::XApic => Mode::XApic,
            Self::X2Apic => Mode::X2Apic,
            Self::Mixed if vcpu.is_multiple_of(2) => Mode::X2Apic,
            Self::Mixed => Mode::XApic,
        }
    }
}
