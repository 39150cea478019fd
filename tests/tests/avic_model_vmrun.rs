//! VMRUN on the AVIC model: checks, clean bits, MSR permissions, events that come with it.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{
    Capability, CleanGroup, Feature, GuestOp, Injected, Knobs, Outcome, Violation, Vmcb, code,
    control, field, intercept,
};

const ABOVE: u64 = 1 << 48;

/// What makes a VMCB bad, for which kind, and what is found.
type Case = (fn(&mut Vmcb), bool, Violation);

const CASES: &[Case] = &[
    (|vmcb| vmcb.set32(field::INTERCEPTS_4, 0), false, Violation::VmrunNotIntercepted),
    (|vmcb| vmcb.set32(field::ASID, 0), false, Violation::AsidZero),
    (
        |vmcb| vmcb.clear_bits64(field::VIRTUAL_INTERRUPT, control::AVIC),
        true,
        Violation::X2AvicWithoutAvic,
    ),
    (|vmcb| vmcb.set64(field::NESTED_CONTROL, 0), false, Violation::AvicWithoutNestedPaging),
    (|vmcb| vmcb.set64(field::NESTED_CONTROL, 0), true, Violation::AvicWithoutNestedPaging),
    (
        |vmcb| vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | 0x100),
        false,
        Violation::MaxIndexAbove255,
    ),
    (|vmcb| vmcb.set64(field::APIC_BAR, ABOVE), false, Violation::ApicBarOutOfRange),
    (|vmcb| vmcb.set64(field::BACKING_PAGE, ABOVE), false, Violation::BackingPageOutOfRange),
    (|vmcb| vmcb.set64(field::BACKING_PAGE, ABOVE), true, Violation::BackingPageOutOfRange),
    (|vmcb| vmcb.set64(field::LOGICAL_TABLE, ABOVE), false, Violation::LogicalTableOutOfRange),
    (|vmcb| vmcb.set64(field::PHYSICAL_TABLE, ABOVE), false, Violation::PhysicalTableOutOfRange),
    (|vmcb| vmcb.set64(field::PHYSICAL_TABLE, ABOVE), true, Violation::PhysicalTableOutOfRange),
    (
        |vmcb| {
            vmcb.set32(field::INTERCEPTS_3, 0);
            vmcb.set_bits64(field::VIRTUAL_INTERRUPT, control::V_NMI_ENABLE);
        },
        false,
        Violation::VirtualNmiWithoutIntercept,
    ),
    (
        |vmcb| vmcb.set64(field::EVENT_INJECTION, 1 << 31 | 1 << 8),
        false,
        Violation::EventInjectionType,
    ),
];

#[test]
fn each_check_is_named_and_reported_as_invalid() {
    for (number, (spoil, x2avic, violation)) in CASES.iter().enumerate() {
        let storage = Storage::new(1);
        let mut rig = Rig { x2avic: *x2avic, ..Rig::new(&storage, 1, Knobs::default()) };
        let mut vmcb = rig.vmcb(0);
        spoil(&mut vmcb);
        assert_eq!(rig.try_enter(0, vmcb), Err(vec![*violation]), "case {number}");
        let core = &mut rig.machine.cores[0];
        assert!(!core.in_guest());
        assert_eq!(core.take_vmcb().unwrap().get64(field::EXIT_CODE), code::INVALID);
    }
}

#[test]
fn what_only_avic_uses_is_not_checked_for_x2avic() {
    let storage = Storage::new(1);
    let mut rig = Rig::x2avic(&storage, 1, Knobs::default());
    let mut vmcb = rig.vmcb(0);
    vmcb.set64(field::APIC_BAR, ABOVE);
    vmcb.set64(field::LOGICAL_TABLE, ABOVE);
    assert!(rig.try_enter(0, vmcb).is_ok());
}

#[test]
fn the_largest_index_depends_on_the_mode_and_the_extension() {
    let full = Capability::full();
    for (x2avic, capability, index, found) in [
        (false, full, 255, None),
        (false, full, 256, Some(Violation::MaxIndexAbove255)),
        (true, full, 0xfff, None),
        (true, Capability::x2avic(), 511, None),
        (true, Capability::x2avic(), 512, Some(Violation::MaxIndexAbove511)),
    ] {
        let storage = Storage::new(1);
        let mut rig = Rig { x2avic, ..Rig::with(&storage, 1, capability, Knobs::default(), 0) };
        let mut vmcb = rig.vmcb(0);
        vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | index);
        let violations = rig.try_enter(0, vmcb).err().unwrap_or_default();
        assert_eq!(violations, Vec::from_iter(found), "{index}");
    }
}

#[test]
fn what_the_processor_does_not_have() {
    for (capability, x2avic, found) in [
        (Capability::svm(), false, vec![Violation::AvicNotSupported]),
        (Capability::avic(), true, vec![Violation::X2AvicNotSupported]),
        (Capability::avic(), false, vec![]),
    ] {
        let storage = Storage::new(1);
        let mut rig = Rig { x2avic, ..Rig::with(&storage, 1, capability, Knobs::default(), 0) };
        let mut vmcb = rig.vmcb(0);
        vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL);
        assert_eq!(rig.try_enter(0, vmcb).err().unwrap_or_default(), found);
    }
}

#[test]
fn a_backing_page_that_a_confidential_guest_owns() {
    for has_rmp in [false, true] {
        let storage = Storage::new(1);
        let full = Capability::full();
        let capability = if has_rmp { full.with(Feature::SecureNestedPaging) } else { full };
        let mut rig = Rig::with(&storage, 1, capability, Knobs::default(), 0);
        rig.machine.cores[0].guest_owned_pages.insert(Storage::page_address(0));
        let vmcb = rig.vmcb(0);
        let found = rig.try_enter(0, vmcb).err().unwrap_or_default();
        assert_eq!(found == [Violation::BackingPageNotHypervisorOwned], has_rmp);
    }
}

#[test]
fn checks_that_the_manual_leaves_open() {
    let knobs = Knobs { bad_pointer_code: 0x7f, ..Knobs::default() };
    let storage = Storage::new(1);
    let mut other_code = Rig::new(&storage, 1, knobs);
    let mut vmcb = other_code.vmcb(0);
    vmcb.set64(field::BACKING_PAGE, ABOVE);
    assert!(other_code.try_enter(0, vmcb).is_err());
    let vmcb = other_code.machine.cores[0].take_vmcb().unwrap();
    assert_eq!(vmcb.get64(field::EXIT_CODE), 0x7f);

    for refused in [false, true] {
        let knobs = Knobs { misaligned_pointers_are_refused: refused, ..Knobs::default() };
        let mut misaligned = Rig::new(&storage, 1, knobs);
        let mut vmcb = misaligned.vmcb(0);
        vmcb.set_bits64(field::BACKING_PAGE, 0x10);
        vmcb.set_bits64(field::LOGICAL_TABLE, 0x10);
        assert_eq!(misaligned.try_enter(0, vmcb).is_err(), refused);
    }

    let knobs = Knobs { avic_without_nested_paging_is_refused: false, ..Knobs::default() };
    let mut unaccelerated = Rig::new(&storage, 1, knobs);
    unaccelerated.machine.memory().add_bytes(Rig::APIC_BASE, &[0; 4096]);
    let mut vmcb = unaccelerated.vmcb(0);
    vmcb.set64(field::NESTED_CONTROL, 0);
    unaccelerated.try_enter(0, vmcb).unwrap();
    let core = &mut unaccelerated.machine.cores[0];
    assert_eq!(core.mmio_write(0xf0, 0x1ff), Outcome::Done, "plain memory, no trap");
    assert_eq!(storage.vcpu(0).word(0xf0), 0);
}

#[test]
fn cpuid() {
    use vlapic_hal::{CpuFeatures, Cpuid, Vendor};
    let full = Capability::full();
    let [_, _, ecx, edx] = full.cpuid(0x8000_000a, 0);
    for (word, bit) in [(edx, 0), (edx, 3), (edx, 5), (edx, 13), (edx, 16), (edx, 18), (edx, 25)] {
        assert_eq!(word >> bit & 1, 1, "bit {bit}");
    }
    assert_eq!((edx >> 27 & 1, edx >> 30 & 1, ecx), (1, 1, 1 << 6));
    let [_, _, _, edx] = full.without(Feature::Avic).cpuid(0x8000_000a, 0);
    assert_eq!(edx >> 13 & 1, 0);
    let features = CpuFeatures::detect(&full.in_family(0x18).of_hygon());
    assert_eq!(features.vendor, Vendor::Amd);
    assert!(features.svm && features.x2apic);
    assert_eq!(features.physical_address_bits, 48);
    let family = |family| full.in_family(family).cpuid(1, 0)[0];
    assert_eq!((family(0x17), family(0x19)), (0x0080_0f00, 0x00a0_0f00));
}

#[test]
fn clean_fields_are_those_that_this_core_loaded_before() {
    for (clean_bits, bit, offset, clean_matters) in [
        (true, 11, field::BACKING_PAGE, true),
        (true, 3, field::BACKING_PAGE, false),
        (false, 11, field::BACKING_PAGE, false),
    ] {
        let storage = Storage::new(2);
        let mut rig = Rig::new(&storage, 2, Knobs { clean_bits, ..Knobs::default() });
        rig.enter(0, 0);
        let mut vmcb = rig.leave(0);
        vmcb.set64(offset, Storage::page_address(1));
        vmcb.set32(field::CLEAN_BITS, 1 << bit);
        rig.try_enter(0, vmcb.clone()).unwrap();
        assert_eq!(rig.machine.cores[0].mmio_write(0x080, 0x20), Outcome::Done);
        let written = if clean_matters { 0 } else { 1 };
        assert_eq!(storage.vcpu(written).word(0x080), 0x20);
        // Another core has loaded nothing before.
        rig.leave(0);
        rig.try_enter(1, vmcb).unwrap();
        assert_eq!(rig.machine.cores[1].mmio_write(0x080, 0x30), Outcome::Done);
        assert_eq!(storage.vcpu(1).word(0x080), 0x30);
    }
}

#[test]
fn v_tpr_belongs_to_clean_bit_3() {
    for (bit, v_tpr) in [(3, 2), (11, 7)] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        rig.enter(0, 0);
        assert_eq!(rig.machine.cores[0].run(GuestOp::WriteCr8 { value: 2 }), Outcome::Done);
        let mut vmcb = rig.leave(0);
        vmcb.set_bits64(field::VIRTUAL_INTERRUPT, 7);
        vmcb.set32(field::CLEAN_BITS, 1 << bit);
        rig.try_enter(0, vmcb).unwrap();
        assert_eq!(rig.machine.cores[0].v_tpr(), Some(v_tpr));
    }
}

#[test]
fn which_clean_bit_covers_the_enable_bits() {
    for (enable_bits_covered_by, by_3, by_11) in [
        (CleanGroup::Tpr, true, false),
        (CleanGroup::Avic, false, true),
        (CleanGroup::Both, true, true),
        (CleanGroup::Neither, false, false),
    ] {
        for (bit, covered) in [(3, by_3), (11, by_11)] {
            let storage = Storage::new(1);
            let knobs = Knobs { enable_bits_covered_by, ..Knobs::default() };
            let mut rig = Rig::new(&storage, 1, knobs);
            rig.enter(0, 0);
            let mut vmcb = rig.leave(0);
            vmcb.clear_bits64(field::VIRTUAL_INTERRUPT, control::AVIC);
            vmcb.set32(field::CLEAN_BITS, 1 << bit);
            rig.try_enter(0, vmcb).unwrap();
            let outcome = rig.machine.cores[0].mmio_write(0xf0, 0x1ff);
            assert_eq!(outcome.exit().is_some(), covered, "{enable_bits_covered_by:?}, bit {bit}");
        }
    }
}

#[test]
fn intercepted_msrs_exit_before_x2avic_sees_them() {
    for (map, read_exits, write_exits) in
        [(0b00, false, false), (0b01, true, false), (0b10, false, true)]
    {
        let storage = Storage::new(1);
        let mut rig = Rig::x2avic(&storage, 1, Knobs::default());
        let mut permissions = vec![0; 8192];
        // MSR 808: bits 1:0 of byte 202h.
        permissions[0x202] = map;
        rig.machine.memory().add_bytes(Storage::MSRPM, &permissions);
        rig.enter(0, 0);
        let read = rig.machine.cores[0].rdmsr(0x808);
        let exits = |outcome: Outcome, write| {
            outcome.exit().is_some_and(|exit| (exit.code, exit.info_1) == (code::MSR, write))
        };
        assert_eq!(exits(read, 0), read_exits);
        if read_exits {
            rig.enter(0, 0);
        }
        assert_eq!(exits(rig.machine.cores[0].wrmsr(0x808, 0x20), 1), write_exits);
        assert_eq!(storage.vcpu(0).word(0x080) == 0x20, !write_exits);
    }
}

#[test]
fn x2apic_msrs_that_nothing_catches_reach_the_processor() {
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    rig.enter(0, 0);
    assert_eq!(rig.machine.cores[0].wrmsr(0x830, 0x41), Outcome::Done);
    let leak = rig.machine.cores[0].leaks()[0];
    assert_eq!((leak.msr, leak.written), (0x830, Some(0x41)));
}

#[test]
fn injected_events_leave_irr_and_isr_alone() {
    for (kind, vector) in [(0, 0x61), (2, 2), (3, 13), (4, 0x80)] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        let mut vmcb = rig.vmcb(0);
        storage.vcpu(0).request(0x51);
        vmcb.set64(field::RFLAGS, 0x202);
        vmcb.set64(field::EVENT_INJECTION, 1 << 31 | kind << 8 | vector);
        let entered = rig.try_enter(0, vmcb).unwrap();
        let wanted = Injected { kind: kind as u8, vector: vector as u8 };
        assert_eq!(entered.injected, Some(wanted));
        assert_eq!((storage.vcpu(0).irr(), storage.vcpu(0).isr()), (vec![0x51], vec![]));
        let core = &mut rig.machine.cores[0];
        assert_eq!(core.poll(), Outcome::Nothing, "the handler starts with interrupts off");
        assert_eq!(core.boundary(true, false), Outcome::Delivered(0x51));
        let vmcb = rig.leave(0);
        assert_eq!(vmcb.get64(field::EVENT_INJECTION) >> 31, 0);
    }
}

#[test]
fn guest_state_crosses_exits() {
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    let mut vmcb = rig.vmcb(0);
    vmcb.set64(field::RFLAGS, 0x2);
    vmcb.set64(field::INTERRUPT_SHADOW, 0x2);
    rig.try_enter(0, vmcb).unwrap();
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.boundary(true, true), Outcome::Nothing);
    core.physical_interrupt(0x31);
    assert_eq!(core.poll().exit().map(|exit| exit.code), Some(code::INTR));
    assert_eq!(core.host_interrupt(), Some(0x31));
    let vmcb = core.take_vmcb().unwrap();
    assert_eq!(vmcb.get64(field::RFLAGS), 0x202);
    assert_eq!(vmcb.get64(field::INTERRUPT_SHADOW), 0x3, "bit 1 is not the processor's");
    assert_eq!(core.exits(), 1);
}

#[test]
fn without_avic_the_virtual_interrupt_is_that_of_the_vmcb() {
    for window in [false, true] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        let mut vmcb = rig.vmcb(0);
        vmcb.clear_bits64(field::VIRTUAL_INTERRUPT, control::AVIC);
        vmcb.set_bits64(field::VIRTUAL_INTERRUPT, 0x61 << 32 | 6 << 16 | control::V_IRQ | 5);
        if window {
            vmcb.set_bits32(field::INTERCEPTS_3, intercept::VINTR);
        }
        rig.try_enter(0, vmcb).unwrap();
        let core = &mut rig.machine.cores[0];
        assert_eq!(core.boundary(false, false), Outcome::Nothing);
        assert_eq!(core.run(GuestOp::WriteCr8 { value: 6 }), Outcome::Done);
        assert_eq!(core.boundary(true, false), Outcome::Nothing, "not above V_TPR");
        assert_eq!(core.run(GuestOp::WriteCr8 { value: 5 }), Outcome::Done);
        let outcome = core.poll();
        if window {
            assert_eq!(outcome.exit().map(|exit| exit.code), Some(code::VINTR));
        } else {
            assert_eq!(outcome, Outcome::Delivered(0x61));
            let vmcb = rig.leave(0);
            assert_eq!(vmcb.get64(field::VIRTUAL_INTERRUPT) & control::V_IRQ, 0);
        }
    }
}
