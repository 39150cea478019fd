//! VM entry on the APICv model: the checks, each alone, and what the processor does before the first instruction.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{
    Activity, Capability, EntryFailure, ExitReason, Feature, Knobs, Outcome, Shadow, Violation,
    VmcsRegion, controls, field,
};

const ANY_WIDTH: u64 = 1 << 45;
const TOO_WIDE: u64 = 1 << 46;

/// What a VMCS fails on after `change`.
fn violations(setup: Setup, change: impl FnOnce(&mut VmcsRegion)) -> Vec<Violation> {
    violations_with(setup, Knobs::default(), change)
}

fn violations_with(
    setup: Setup,
    knobs: Knobs,
    change: impl FnOnce(&mut VmcsRegion),
) -> Vec<Violation> {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, setup, knobs);
    change(rig.vmcs());
    match rig.try_enter() {
        Ok(_) => Vec::new(),
        Err(EntryFailure::InvalidControls(found)) => {
            assert_eq!(rig.vmcs().get(field::INSTRUCTION_ERROR), 7);
            assert!(!rig.core.in_guest());
            found
        }
        Err(failure) => unreachable!("{failure:?} with no event and no blocking"),
    }
}

fn clear(vmcs: &mut VmcsRegion, encoding: u32, bits: u32) {
    vmcs.set(encoding, vmcs.get(encoding) & !u64::from(bits));
}

#[test]
fn every_consistent_setup_enters() {
    for setup in [
        Setup::NONE,
        Setup { apic_accesses: true, ..Setup::NONE },
        Setup { tpr_shadow: true, ..Setup::NONE },
        Setup::FLEX_PRIORITY,
        Setup::REGISTERS,
        Setup { delivery: true, ..Setup::FLEX_PRIORITY },
        Setup { delivery: true, tpr_shadow: true, ..Setup::NONE },
        Setup::DELIVERY,
        Setup::POSTED,
        Setup::IPI,
        Setup { ipi: true, ..Setup::FLEX_PRIORITY },
    ] {
        assert_eq!(violations(setup, |_| ()), [], "{setup:?}");
        if setup.tpr_shadow {
            assert_eq!(violations(setup.in_x2apic(), |_| ()), [], "{:?}", setup.in_x2apic());
        }
    }
}

/// A setup, a change to its VMCS, and what the entry then fails on.
type Row = (&'static str, Setup, fn(&mut VmcsRegion), &'static [Violation]);

#[test]
fn every_row_of_the_check_table() {
    use Violation as V;
    let shadow = Setup { tpr_shadow: true, ..Setup::NONE };
    let rows: [Row; 26] = [
        (
            "page alignment",
            shadow,
            |v| v.set(field::VIRTUAL_APIC_ADDRESS, 0x10_0800),
            &[V::VirtualApicAddress],
        ),
        (
            "page width",
            shadow,
            |v| v.set(field::VIRTUAL_APIC_ADDRESS, TOO_WIDE),
            &[V::VirtualApicAddress],
        ),
        ("threshold", shadow, |v| v.set(field::TPR_THRESHOLD, 1), &[V::TprThresholdAboveVtpr]),
        (
            "threshold reserved",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::TPR_THRESHOLD, 0x10),
            &[V::TprThresholdReserved],
        ),
        (
            "threshold reserved, high",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::TPR_THRESHOLD, 0x8000_0000),
            &[V::TprThresholdReserved],
        ),
        (
            "threshold with delivery",
            Setup::DELIVERY,
            |v| v.set(field::TPR_THRESHOLD, 0xffff_ffff),
            &[],
        ),
        (
            "access page alignment",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, 1),
            &[V::ApicAccessAddress],
        ),
        (
            "access page width",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, TOO_WIDE),
            &[V::ApicAccessAddress],
        ),
        (
            "access page in range",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, ANY_WIDTH),
            &[],
        ),
        (
            "x2APIC needs the shadow",
            Setup { x2apic: true, ..Setup::NONE },
            |_| (),
            &[V::X2ApicWithoutTprShadow],
        ),
        (
            "registers need the shadow",
            Setup { register_virtualization: true, ..Setup::NONE },
            |_| (),
            &[V::RegisterVirtualizationWithoutTprShadow],
        ),
        (
            "delivery needs the shadow",
            Setup { delivery: true, ..Setup::NONE },
            |_| (),
            &[V::DeliveryWithoutTprShadow],
        ),
        (
            "x2APIC or accesses",
            Setup { x2apic: true, ..Setup::FLEX_PRIORITY },
            |_| (),
            &[V::X2ApicWithApicAccesses],
        ),
        (
            "delivery needs interrupt exits",
            Setup::DELIVERY,
            |v| clear(v, field::PIN_BASED, controls::pin::EXTERNAL_INTERRUPT_EXITING),
            &[V::DeliveryWithoutExternalInterruptExiting],
        ),
        (
            "posting needs delivery",
            Setup { posted: true, ..Setup::REGISTERS },
            |_| (),
            &[V::PostedWithoutDelivery],
        ),
        (
            "posting needs acknowledgement",
            Setup::POSTED,
            |v| clear(v, field::VM_EXIT_CONTROLS, controls::exit::ACKNOWLEDGE_INTERRUPT),
            &[V::PostedWithoutAcknowledge],
        ),
        (
            "notification vector",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0x100),
            &[V::NotificationVector],
        ),
        (
            "notification vector 255",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xff),
            &[],
        ),
        (
            "descriptor alignment",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, Storage::DESCRIPTOR + 32),
            &[V::DescriptorAddress],
        ),
        (
            "descriptor width",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, TOO_WIDE),
            &[V::DescriptorAddress],
        ),
        (
            "PID-pointer table alignment",
            Setup::IPI,
            |v| v.set(field::PID_POINTER_TABLE_ADDRESS, Storage::PID_POINTERS + 4),
            &[V::PidPointerTableAddress],
        ),
        (
            "PID-pointer table's end",
            Setup::IPI,
            |v| v.set(field::PID_POINTER_TABLE_ADDRESS, TOO_WIDE - 8 * 15),
            &[V::PidPointerTableAddress],
        ),
        (
            "IPIs need the shadow",
            Setup { ipi: true, ..Setup::NONE },
            |_| (),
            &[V::IpiVirtualizationWithoutTprShadow],
        ),
        (
            "MSR bitmap",
            Setup::NONE,
            |v| v.set(field::MSR_BITMAP_ADDRESS, 0x800),
            &[V::MsrBitmapAddress],
        ),
        (
            "secondary controls not active",
            Setup { delivery: true, x2apic: true, ..Setup::NONE },
            |v| clear(v, field::PRIMARY, controls::primary::SECONDARY),
            &[],
        ),
        (
            "tertiary controls not active",
            Setup { ipi: true, ..Setup::NONE },
            |v| clear(v, field::PRIMARY, controls::primary::TERTIARY),
            &[],
        ),
    ];
    for (name, setup, change, wanted) in rows {
        assert_eq!(violations(setup, change), wanted, "{name}");
    }
}

#[test]
fn addresses_may_be_limited_to_32_bits() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, Knobs::default());
    let mut vmcs =
        VmcsRegion::with_default_controls(Capability::full().with(Feature::Addresses32Bit));
    Setup::FLEX_PRIORITY.program(&mut vmcs);
    vmcs.set(field::APIC_ACCESS_ADDRESS, 1 << 32);
    rig.core.vmptrld(vmcs);
    assert_eq!(
        rig.try_enter(),
        Err(EntryFailure::InvalidControls(vec![Violation::ApicAccessAddress]))
    );
}

#[test]
fn a_control_the_processor_lacks_fails_the_entry() {
    for (feature, setup, wanted) in [
        (Feature::TprShadow, Setup { tpr_shadow: true, ..Setup::NONE }, Violation::PrimaryReserved),
        (Feature::VirtualizeApicAccesses, Setup::FLEX_PRIORITY, Violation::SecondaryReserved),
        (Feature::VirtualizeX2Apic, Setup::REGISTERS.in_x2apic(), Violation::SecondaryReserved),
        (Feature::ApicRegisterVirtualization, Setup::REGISTERS, Violation::SecondaryReserved),
        (Feature::VirtualInterruptDelivery, Setup::DELIVERY, Violation::SecondaryReserved),
        (Feature::PostedInterrupts, Setup::POSTED, Violation::PinBasedReserved),
        (Feature::AcknowledgeOnExit, Setup::POSTED, Violation::ExitControlsReserved),
        (Feature::TertiaryControls, Setup::IPI, Violation::PrimaryReserved),
        (Feature::IpiVirtualization, Setup::IPI, Violation::TertiaryReserved),
    ] {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, setup, Knobs::default());
        let mut vmcs = VmcsRegion::with_default_controls(Capability::full().without(feature));
        setup.program(&mut vmcs);
        rig.core.vmptrld(vmcs);
        assert_eq!(
            rig.try_enter(),
            Err(EntryFailure::InvalidControls(vec![wanted])),
            "{feature:?}"
        );
    }
}

#[test]
fn controls_that_must_be_1() {
    for (encoding, bit, wanted) in [
        (field::PIN_BASED, 1 << 1, Violation::PinBasedReserved),
        (field::PRIMARY, 1 << 1, Violation::PrimaryReserved),
        (field::VM_EXIT_CONTROLS, 1, Violation::ExitControlsReserved),
    ] {
        assert_eq!(violations(Setup::NONE, |vmcs| clear(vmcs, encoding, bit)), [wanted]);
    }
}

#[test]
fn ipi_checks_are_a_knob() {
    let knobs = Knobs { ipiv_entry_checks: false, ..Knobs::default() };
    let found = violations_with(Setup::IPI, knobs, |v| v.set(field::PID_POINTER_TABLE_ADDRESS, 4));
    assert_eq!(found, []);
}

#[test]
fn nothing_to_enter_without_a_vmcs() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::NONE, Knobs::default());
    assert!(rig.core.vmclear().is_some());
    assert_eq!(rig.try_enter(), Err(EntryFailure::NoCurrentVmcs));
}

#[test]
fn upper_bytes_of_vtpr_may_go_even_if_the_entry_fails() {
    for clears in [false, true] {
        let storage = Storage::new();
        storage.set_word(0x080, 0x1234_5620);
        let knobs = Knobs { entry_clears_vtpr_upper_bytes: clears, ..Knobs::default() };
        let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, knobs);
        rig.vmcs().set(field::TPR_THRESHOLD, 0x20);
        assert!(rig.try_enter().is_err());
        assert_eq!(storage.word(0x080), if clears { 0x20 } else { 0x1234_5620 });
    }
}

#[test]
fn threshold_exit_right_after_entry() {
    // (threshold, VTPR, activity state, expected exit)
    for (threshold, vtpr, activity, exits) in [
        (3, 0x2f, 0, true),
        (3, 0x30, 0, false),
        (3, 0x20, 1, true),
        (0, 0x00, 0, false),
        (15, 0xef, 0, true),
        (3, 0x20, 2, false),
        (3, 0x20, 3, false),
    ] {
        let storage = Storage::new();
        storage.set_word(0x080, vtpr);
        let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, Knobs::default());
        rig.vmcs().set(field::TPR_THRESHOLD, threshold);
        rig.vmcs().set(field::GUEST_ACTIVITY_STATE, activity);
        let entered = rig.try_enter().expect("the entry itself succeeds");
        let wanted = exits.then_some(ExitReason::TprBelowThreshold);
        assert_eq!(
            entered.exit.map(|exit| exit.reason),
            wanted,
            "{threshold} {vtpr:#x} {activity}"
        );
        assert_eq!(rig.core.in_guest(), !exits);
    }
}

#[test]
fn no_threshold_exit_with_delivery() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.vmcs().set(field::TPR_THRESHOLD, 15);
    rig.enter();
    assert_eq!(rig.core.write_cr8(0), Outcome::Done);
}

#[test]
fn shutdown_holds_the_threshold_exit_back_until_an_nmi() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, Knobs::default());
    rig.vmcs().set(field::TPR_THRESHOLD, 1);
    rig.vmcs().set(field::GUEST_ACTIVITY_STATE, 2);
    rig.enter();
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Nothing);
    assert_eq!(rig.core.nmi().reason(), Some((ExitReason::TprBelowThreshold, 0)));
}

#[test]
fn entry_computes_ppr_and_evaluates() {
    // (VTPR, SVI, RVI, VPPR, recognized)
    for (vtpr, svi, rvi, vppr, recognized) in [
        (0x00, 0x00, 0x00, 0x00, false),
        (0x00, 0x00, 0x10, 0x00, true),
        (0x00, 0x00, 0x0f, 0x00, false),
        (0x2f, 0x00, 0x2f, 0x2f, false),
        (0x2f, 0x00, 0x30, 0x2f, true),
        (0x21, 0x2e, 0x2f, 0x21, false),
        (0x11, 0x2e, 0x30, 0x20, true),
        (0x11, 0x2e, 0x2f, 0x20, false),
        (0xf0, 0xe0, 0xff, 0xf0, false),
        (0xe5, 0xe7, 0xf0, 0xe5, true),
    ] {
        let storage = Storage::new();
        storage.set_word(0x080, vtpr);
        storage.set_word(0x0a0, 0xffff_ffff);
        let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
        rig.set_interrupt_status(rvi, svi);
        rig.enter();
        assert_eq!(storage.word(0x0a0), vppr, "VPPR for {vtpr:#x} {svi:#x}");
        assert_eq!(rig.core.recognized(), recognized, "{vtpr:#x} {svi:#x} {rvi:#x}");
    }
}

#[test]
fn entry_without_delivery_leaves_interrupt_status_alone() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::REGISTERS, Knobs::default());
    rig.set_interrupt_status(0x51, 0x41);
    rig.enter();
    assert!(!rig.core.recognized());
    rig.leave();
    assert_eq!(rig.saved_interrupt_status(), (0x51, 0x41));
    assert_eq!(storage.word(0x0a0), 0);
}

#[test]
fn injection_is_delivered_once_and_ends_hlt() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.vmcs().set(field::ENTRY_INTERRUPTION_INFO, 1 << 31 | 0x61);
    rig.vmcs().set(field::GUEST_RFLAGS, 0x202);
    rig.vmcs().set(field::GUEST_ACTIVITY_STATE, 1);
    rig.set_interrupt_status(0x51, 0);
    storage.request(0x51);
    let entered = rig.try_enter().expect("consistent controls");
    assert_eq!((entered.injected, entered.exit), (Some(0x61), None));
    assert_eq!(rig.core.activity(), Some(Activity::Active));
    assert_eq!(rig.core.interrupt_flag(), Some(false), "the handler starts with interrupts off");
    // Injection does not touch the virtual APIC.
    assert_eq!((storage.isr(), rig.core.interrupt_status()), (vec![], Some((0x51, 0))));
    rig.leave();
    assert_eq!(rig.try_enter().expect("consistent controls").injected, None);
}

#[test]
fn an_interrupt_is_injected_only_where_the_guest_takes_one() {
    const INTERRUPT: u64 = 1 << 31 | 0x61;
    const EXCEPTION: u64 = 1 << 31 | 3 << 8 | 0x0d;
    // (event, RFLAGS, interruptibility, activity state, enters)
    for (event, flags, blocking, activity, enters) in [
        (INTERRUPT, 0x202, 0, 0, true),
        (INTERRUPT, 0x002, 0, 0, false),
        (INTERRUPT, 0x202, 1, 0, false),
        (INTERRUPT, 0x202, 2, 0, false),
        (INTERRUPT, 0x202, 0, 1, true),
        (INTERRUPT, 0x202, 0, 2, false),
        (INTERRUPT, 0x202, 0, 3, false),
        (EXCEPTION, 0x002, 0, 0, true),
        (EXCEPTION, 0x002, 2, 0, true),
        (0, 0x002, 0, 0, true),
        (0, 0x202, 1, 0, true),
        (0, 0x002, 1, 0, false),
        (0, 0x202, 3, 0, false),
        (0, 0x202, 1, 1, false),
    ] {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
        rig.vmcs().set(field::ENTRY_INTERRUPTION_INFO, event);
        rig.vmcs().set(field::GUEST_RFLAGS, flags);
        rig.vmcs().set(field::GUEST_INTERRUPTIBILITY, blocking);
        rig.vmcs().set(field::GUEST_ACTIVITY_STATE, activity);
        let result = rig.try_enter();
        assert_eq!(result.is_ok(), enters, "{event:#x} {flags:#x} {blocking} {activity}");
        if !enters {
            assert_eq!(result, Err(EntryFailure::InvalidGuestState));
            assert_eq!(rig.vmcs().get(field::EXIT_REASON), 0x8000_0021);
        }
    }
}

#[test]
fn the_interrupt_flag_crosses_exits_and_entries() {
    let storage = Storage::new();
    storage.request(0x51);
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.set_interrupt_status(0x51, 0);
    rig.enter();
    assert_eq!(rig.core.poll(), Outcome::Nothing);
    assert_eq!(rig.core.sti(), Outcome::Done);
    assert_eq!(rig.core.poll(), Outcome::Nothing, "blocked for one instruction");
    // An instruction that exits before it completes does not end the blocking.
    rig.leave();
    assert_eq!(rig.vmcs().get(field::GUEST_RFLAGS), 0x202);
    assert_eq!(rig.vmcs().get(field::GUEST_INTERRUPTIBILITY), 1);
    rig.enter();
    assert_eq!(rig.core.write_cr8(0), Outcome::Done);
    assert_eq!(rig.core.poll(), Outcome::Delivered(0x51));
    rig.leave();
    assert_eq!(rig.vmcs().get(field::GUEST_RFLAGS), 0x002);
    assert_eq!(rig.vmcs().get(field::GUEST_INTERRUPTIBILITY), 0);
}

#[test]
fn preemption_timer() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.vmcs().set_bits(field::PIN_BASED, controls::pin::PREEMPTION_TIMER);
    rig.vmcs().set_bits(field::VM_EXIT_CONTROLS, controls::exit::SAVE_PREEMPTION_TIMER);
    rig.vmcs().set(field::PREEMPTION_TIMER, 10);
    rig.enter();
    rig.core.tick(4);
    rig.leave();
    assert_eq!(rig.vmcs().get(field::PREEMPTION_TIMER), 6);
    rig.enter();
    assert_eq!(rig.core.hlt(), Outcome::Done);
    rig.core.tick(5);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Nothing);
    rig.core.tick(5);
    assert_eq!(
        rig.core.boundary(false, Shadow::None).reason(),
        Some((ExitReason::PreemptionTimer, 0))
    );
    let entered = rig.try_enter().expect("consistent controls");
    assert_eq!(entered.exit.map(|exit| exit.reason), Some(ExitReason::PreemptionTimer));
}

#[test]
fn the_vmcs_says_why_the_guest_was_left() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::REGISTERS);
    let exit = rig.core.mmio_write(0x0f0, 4, 0x1ff).exit().expect("an APIC-write exit");
    assert_eq!(rig.vmcs().get(field::EXIT_REASON), 56);
    assert_eq!(rig.vmcs().get(field::EXIT_QUALIFICATION), 0x0f0);
    assert_eq!(exit.reason_field(), 56);
    rig.enter();
    assert!(rig.core.external_interrupt(0x40).exit().is_some());
    assert_eq!(rig.vmcs().get(field::EXIT_REASON), 1);
    assert_eq!(rig.vmcs().get(field::EXIT_INTERRUPTION_INFO), 0x8000_0040);
}
