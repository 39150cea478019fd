//! The VMCB's control words as VMRUN loads them.

use super::capability::{Capability, Feature};
use super::knobs::{CleanGroup, Knobs};
use super::vmcb::{Vmcb, control, field};

/// Low 12 bits clear, and bits above the largest physical address too.
const PAGE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Fields covered by the clean bits that the model knows, besides the two enable bits.
const CLEAN_GROUPS: [(u32, std::ops::Range<usize>); 9] = [
    (0, 0x000..0x018),
    (1, 0x040..0x050),
    (2, 0x058..0x05c),
    (3, 0x060..0x068),
    (4, 0x090..0x098),
    (4, 0x0b0..0x0b8),
    (11, 0x098..0x0a0),
    (11, 0x0e0..0x0e8),
    (11, 0x0f0..0x100),
];

/// What accelerates the guest's APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Off,
    XAvic,
    X2Avic,
}

/// The controls of a running guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Controls {
    pub(super) mode: Mode,
    pub(super) interrupt_masking: bool,
    pub(super) ignore_tpr: bool,
    pub(super) virtual_gif: bool,
    pub(super) virtual_nmi: bool,
    pub(super) injected_vector: u8,
    pub(super) injected_priority: u8,
    pub(super) cr_intercepts: u32,
    pub(super) intercepts_3: u32,
    pub(super) intercepts_4: u32,
    pub(super) intercepts_5: u32,
    pub(super) msrpm: u64,
    pub(super) asid: u32,
    pub(super) nested_cr3: Option<u64>,
    pub(super) apic_bar: u64,
    pub(super) backing_page: u64,
    pub(super) logical_table: u64,
    pub(super) physical_table: u64,
    pub(super) max_index: u32,
}

impl Controls {
    /// Reads a VMCB that passed the checks.
    pub(super) fn of(vmcb: &Vmcb) -> Self {
        let word = vmcb.get64(field::VIRTUAL_INTERRUPT);
        let nested = vmcb.get64(field::NESTED_CONTROL) & 1 != 0;
        Controls {
            mode: match (word & control::AVIC != 0 && nested, word & control::X2AVIC != 0) {
                (false, _) => Mode::Off,
                (true, false) => Mode::XAvic,
                (true, true) => Mode::X2Avic,
            },
            interrupt_masking: word & control::V_INTR_MASKING != 0,
            ignore_tpr: word & control::V_IGN_TPR != 0,
            virtual_gif: word & control::V_GIF_ENABLE == 0 || word & control::V_GIF != 0,
            virtual_nmi: word & control::V_NMI_ENABLE != 0,
            injected_vector: (word >> 32) as u8,
            injected_priority: (word >> 16) as u8 & 0xf,
            cr_intercepts: vmcb.get32(field::CR_INTERCEPTS),
            intercepts_3: vmcb.get32(field::INTERCEPTS_3),
            intercepts_4: vmcb.get32(field::INTERCEPTS_4),
            intercepts_5: vmcb.get32(field::INTERCEPTS_5),
            msrpm: vmcb.get64(field::MSRPM_BASE) & PAGE_ADDRESS,
            asid: vmcb.get32(field::ASID),
            nested_cr3: nested.then(|| vmcb.get64(field::NESTED_CR3)),
            apic_bar: vmcb.get64(field::APIC_BAR) & PAGE_ADDRESS,
            backing_page: vmcb.get64(field::BACKING_PAGE) & PAGE_ADDRESS,
            logical_table: vmcb.get64(field::LOGICAL_TABLE) & PAGE_ADDRESS,
            physical_table: vmcb.get64(field::PHYSICAL_TABLE) & PAGE_ADDRESS,
            max_index: vmcb.get32(field::PHYSICAL_TABLE) & 0xfff,
        }
    }
}

/// The VMCB as the core sees it: fields that software called clean are those the core loaded before.
pub(super) fn loaded(
    vmcb: &Vmcb,
    cached: Option<&Vmcb>,
    capability: Capability,
    knobs: Knobs,
) -> Vmcb {
    let mut seen = vmcb.clone();
    let Some(cached) = cached.filter(|_| knobs.clean_bits && capability.has(Feature::VmcbClean))
    else {
        return seen;
    };
    let clean = vmcb.get32(field::CLEAN_BITS);
    let is_clean = |bit: u32| clean >> bit & 1 != 0;
    for (bit, range) in CLEAN_GROUPS {
        if is_clean(bit) {
            seen.copy_range(cached, range);
        }
    }
    let enable_is_clean = match knobs.enable_bits_covered_by {
        CleanGroup::Tpr => is_clean(3),
        CleanGroup::Avic => is_clean(11),
        CleanGroup::Both => is_clean(3) || is_clean(11),
        CleanGroup::Neither => false,
    };
    let enable = control::AVIC | control::X2AVIC;
    let source = if enable_is_clean { cached } else { vmcb };
    seen.clear_bits64(field::VIRTUAL_INTERRUPT, enable);
    seen.set_bits64(field::VIRTUAL_INTERRUPT, source.get64(field::VIRTUAL_INTERRUPT) & enable);
    seen
}
