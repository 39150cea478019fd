//! The consistency checks of VMRUN.

use std::collections::BTreeSet;

use super::capability::{Capability, Feature};
use super::exit::code;
use super::knobs::Knobs;
use super::vmcb::{Vmcb, control, field, intercept};

/// What VMRUN found wrong. The processor itself only reports exit code -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each name says what is wrong")]
pub enum Violation {
    VmrunNotIntercepted,
    AsidZero,
    AvicNotSupported,
    X2AvicNotSupported,
    X2AvicWithoutAvic,
    AvicWithoutNestedPaging,
    MaxIndexAbove255,
    MaxIndexAbove511,
    ApicBarOutOfRange,
    BackingPageOutOfRange,
    LogicalTableOutOfRange,
    PhysicalTableOutOfRange,
    BackingPageMisaligned,
    LogicalTableMisaligned,
    BackingPageNotHypervisorOwned,
    VirtualNmiWithoutIntercept,
    EventInjectionType,
}

impl Violation {
    /// The exit code it is reported with.
    pub(super) fn exit_code(self, knobs: &Knobs) -> u64 {
        match self {
            Violation::ApicBarOutOfRange
            | Violation::BackingPageOutOfRange
            | Violation::LogicalTableOutOfRange
            | Violation::PhysicalTableOutOfRange => knobs.bad_pointer_code,
            _ => code::INVALID,
        }
    }
}

/// Everything that is wrong, in the order of [`Violation`]; empty if VMRUN enters the guest.
pub(super) fn violations(
    vmcb: &Vmcb,
    capability: Capability,
    knobs: &Knobs,
    guest_owned: &BTreeSet<u64>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut require = |holds: bool, violation| {
        if !holds {
            found.push(violation);
        }
    };
    let word = vmcb.get64(field::VIRTUAL_INTERRUPT);
    let vmrun_is_intercepted = vmcb.get32(field::INTERCEPTS_4) & intercept::VMRUN != 0;
    require(vmrun_is_intercepted, Violation::VmrunNotIntercepted);
    require(vmcb.get32(field::ASID) != 0, Violation::AsidZero);
    avic(vmcb, word, capability, knobs, &mut require);
    let hypervisor_owned = word & control::AVIC == 0
        || !capability.has(Feature::SecureNestedPaging)
        || !guest_owned.contains(&(vmcb.get64(field::BACKING_PAGE) & !0xfff));
    require(hypervisor_owned, Violation::BackingPageNotHypervisorOwned);
    let nmi_is_intercepted = vmcb.get32(field::INTERCEPTS_3) & intercept::NMI != 0;
    require(
        word & control::V_NMI_ENABLE == 0 || nmi_is_intercepted,
        Violation::VirtualNmiWithoutIntercept,
    );
    let injection = vmcb.get64(field::EVENT_INJECTION);
    let kind = injection >> 8 & 7;
    require(
        injection >> 31 & 1 == 0 || matches!(kind, 0 | 2 | 3 | 4),
        Violation::EventInjectionType,
    );
    found
}

fn avic(
    vmcb: &Vmcb,
    word: u64,
    capability: Capability,
    knobs: &Knobs,
    require: &mut impl FnMut(bool, Violation),
) {
    let avic = word & control::AVIC != 0;
    let x2avic = word & control::X2AVIC != 0;
    require(!avic || capability.has(Feature::Avic), Violation::AvicNotSupported);
    require(!x2avic || capability.has(Feature::X2Avic), Violation::X2AvicNotSupported);
    require(!x2avic || avic, Violation::X2AvicWithoutAvic);
    if !avic {
        return;
    }
    let nested = vmcb.get64(field::NESTED_CONTROL) & 1 != 0;
    require(
        nested || !knobs.avic_without_nested_paging_is_refused,
        Violation::AvicWithoutNestedPaging,
    );
    let max_index = vmcb.get64(field::PHYSICAL_TABLE) & 0xfff;
    if !x2avic {
        require(max_index <= 255, Violation::MaxIndexAbove255);
    } else if !capability.has(Feature::X2AvicExtension) {
        require(max_index <= 511, Violation::MaxIndexAbove511);
    }
    let in_range = |offset| capability.is_physical(vmcb.get64(offset));
    require(x2avic || in_range(field::APIC_BAR), Violation::ApicBarOutOfRange);
    require(in_range(field::BACKING_PAGE), Violation::BackingPageOutOfRange);
    require(x2avic || in_range(field::LOGICAL_TABLE), Violation::LogicalTableOutOfRange);
    require(in_range(field::PHYSICAL_TABLE), Violation::PhysicalTableOutOfRange);
    if knobs.misaligned_pointers_are_refused {
        let aligned = |offset| vmcb.get64(offset) & 0xfff == 0;
        require(aligned(field::BACKING_PAGE), Violation::BackingPageMisaligned);
        require(x2avic || aligned(field::LOGICAL_TABLE), Violation::LogicalTableMisaligned);
    }
}
