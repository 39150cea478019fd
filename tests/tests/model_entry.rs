//! VM entry on the APICv model: what the processor does between the checks and the first instruction, and what an exit leaves.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{
    Activity, EntryFailure, ExitReason, Knobs, Outcome, Shadow, controls, field,
};

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
