//! Named scenarios of upcalls. Each is a mistake that a hypervisor made, or could make.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::SeqCst;

use vlapic_core::{Delivery, Event, Notify, Outcome, Profile, RefusedUpcall, Register, Trigger};
use vlapic_tests::plain::{Plain, WAYS, Way};

const UPCALL: u8 = 0xF3;

/// In which order a handler ends the interrupt and clears the pending byte.
#[derive(Clone, Copy, Debug)]
enum Handler {
    EoiFirst,
    ClearFirst,
}

const HANDLERS: [Handler; 2] = [Handler::EoiFirst, Handler::ClearFirst];

/// Runs the guest until it has nothing more to take; says how many upcalls it saw.
fn run(plain: &mut Plain, pending: &AtomicU8, handler: Handler) -> usize {
    for seen in 0..10 {
        let _ = plain.apic.prepare(plain.now);
        let Some(vector) = plain.apic.nominate() else { return seen };
        assert_eq!(vector.get(), UPCALL);
        assert!(plain.apic.commit(vector));
        match handler {
            Handler::EoiFirst => {
                plain.set(Register::Eoi, 0);
                let _ = plain.apic.prepare(plain.now);
                pending.store(0, SeqCst);
            }
            Handler::ClearFirst => {
                pending.store(0, SeqCst);
                plain.set(Register::Eoi, 0);
            }
        }
    }
    panic!("upcalls without end")
}

/// A started application processor, its APIC as INIT left it.
fn processor(policy: RefusedUpcall) -> Plain {
    let mut plain = Plain::with(Profile::intel(), 1, false, policy);
    assert_eq!(plain.slot.receive(Delivery::Startup { page: 8 }).outcome, Outcome::Accepted);
    assert_eq!(plain.apic.take_event(), Some(Event::Startup { page: 8 }));
    plain
}

fn register(plain: &Plain, pending: &AtomicU8) {
    let _ = plain.slot.register_upcall(UPCALL, pending).unwrap();
}

#[test]
fn stale_irr_upcall_before_enable() {
    for way in WAYS {
        for handler in HANDLERS {
            let mut plain = processor(RefusedUpcall::Owed);
            let pending = plain.pending;
            pending.store(1, SeqCst);
            register(&plain, pending);
            assert_eq!(plain.slot.notify_upcall(pending), Notify::None, "no edge");
            let prepared = plain.apic.prepare(0);
            assert!(prepared.upcall_owed);
            assert_eq!((plain.irr(), plain.isr()), (vec![], vec![]), "the guest's stale check");
            plain.write_svr(way, 0x1FF);
            assert_eq!(run(&mut plain, pending, handler), 1, "{way:?} {handler:?}");
            assert!(!plain.apic.prepare(0).upcall_owed);
        }
    }
}

#[test]
fn pending_before_vector() {
    for policy in [RefusedUpcall::Owed, RefusedUpcall::Lost, RefusedUpcall::OwedWhileOnline] {
        for by_notify in [false, true] {
            let mut plain = processor(policy);
            let pending = plain.pending;
            plain.enable();
            if by_notify {
                assert_eq!(plain.slot.notify_upcall(pending), Notify::None, "no vector yet");
            } else {
                pending.store(1, SeqCst);
            }
            assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 0);
            register(&plain, pending);
            assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1, "{policy:?}");
        }
    }
}

#[test]
fn upcall_lost_spiv_write_without_exit() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    assert_eq!(plain.slot.notify_upcall(pending), Notify::Kick, "make it look again");
    plain.write_svr(Way::Silent, 0x1FF);
    assert_eq!(plain.irr(), [], "nobody has looked");
    assert!(!plain.apic.prepare(0).upcall_owed);
    assert_eq!(plain.irr(), [UPCALL]);
}

#[test]
fn spiv_enabled_rewrite_no_duplicate() {
    for way in WAYS {
        let mut plain = processor(RefusedUpcall::Owed);
        let pending = plain.pending;
        register(&plain, pending);
        plain.enable();
        let _ = plain.slot.notify_upcall(pending);
        assert_eq!(plain.apic.acknowledge(), UPCALL);
        for svr in [0x1EF, 0x1FF, 0x0FF, 0x1FF] {
            plain.write_svr(way, svr);
            let _ = plain.apic.prepare(0);
        }
        assert_eq!(plain.irr(), [], "{way:?}: still the same edge");
        pending.store(0, SeqCst);
        plain.set(Register::Eoi, 0);
        assert_eq!(run(&mut plain, pending, Handler::ClearFirst), 0);
    }
}

#[test]
fn registration_when_not_pending() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    plain.enable();
    assert_eq!(plain.slot.register_upcall(UPCALL, pending), Ok(Notify::None));
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 0);
}

#[test]
fn pending_byte_survives_init() {
    for way in WAYS {
        let mut plain = processor(RefusedUpcall::Owed);
        let pending = plain.pending;
        register(&plain, pending);
        plain.enable();
        let _ = plain.slot.notify_upcall(pending);
        assert_eq!(plain.slot.receive(Delivery::Init).outcome, Outcome::Accepted);
        assert_eq!(plain.slot.receive(Delivery::Startup { page: 1 }).outcome, Outcome::Accepted);
        while plain.apic.take_event().is_some() {}
        assert_eq!(plain.irr(), [], "INIT empties IRR");
        assert!(plain.apic.prepare(0).upcall_owed);
        assert_eq!(plain.irr(), []);
        plain.write_svr(way, 0x1FF);
        assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1);
    }
}

#[test]
fn after_init_a_cleared_byte_owes_nothing() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    plain.apic.init();
    let prepared = plain.apic.prepare(0);
    assert!(!prepared.upcall_owed, "nobody has to watch SVR");
    plain.enable();
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 0);
}

#[test]
fn vector_change_leaves_old_irr() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    plain.enable();
    plain.set(Register::Tpr, 0xF0);
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(plain.slot.register_upcall(0x30, pending), Ok(Notify::None));
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [UPCALL], "hardware cannot recall it, and it is one edge");
    pending.store(0, SeqCst);
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(plain.irr(), [UPCALL, 0x30], "a new edge has the new vector");
}

#[test]
fn upcall_from_irq_context() {
    // Requested while enabled, carried out after the guest has disabled its APIC.
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    plain.enable();
    plain.write_svr(Way::Silent, 0xFF);
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(plain.irr(), []);
    plain.write_svr(Way::Silent, 0x1FF);
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1);
}

#[test]
fn upcall_bsp_before_percpu_flag() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    plain.enable();
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(plain.apic.acknowledge(), UPCALL);
    pending.store(0, SeqCst);
    // The handler returns without EOI: lower classes stay blocked, as on hardware.
    assert_eq!(plain.slot.request(0x41, Trigger::Edge).outcome, Outcome::Accepted);
    let _ = plain.apic.prepare(0);
    assert_eq!((plain.isr(), plain.apic.nominate()), (vec![UPCALL], None));
}

#[test]
fn restore_loses_upcall_vector() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    plain.enable();
    let _ = plain.slot.notify_upcall(pending);
    // A fresh slot with the old byte: events that come meanwhile are no edges.
    let mut restored = processor(RefusedUpcall::Owed);
    restored.apic.bind_upcall(pending);
    restored.enable();
    assert_eq!(restored.slot.notify_upcall(pending), Notify::None);
    assert_eq!(run(&mut restored, pending, Handler::EoiFirst), 0);
    register(&restored, pending);
    assert_eq!(run(&mut restored, pending, Handler::EoiFirst), 1);
}

#[test]
fn an_edge_refused_under_each_policy() {
    for (policy, online, expected) in [
        (RefusedUpcall::Owed, true, 1),
        (RefusedUpcall::Owed, false, 1),
        (RefusedUpcall::Lost, true, 0),
        (RefusedUpcall::Lost, false, 0),
        (RefusedUpcall::OwedWhileOnline, true, 1),
        (RefusedUpcall::OwedWhileOnline, false, 0),
    ] {
        for way in WAYS {
            let mut plain = Plain::with(Profile::intel(), 1, online, policy);
            let pending = plain.pending;
            register(&plain, pending);
            let _ = plain.slot.notify_upcall(pending);
            let prepared = plain.apic.prepare(0);
            assert_eq!(prepared.upcall_owed, expected == 1, "{policy:?} {online}");
            plain.write_svr(way, 0x1FF);
            assert_eq!(run(&mut plain, pending, Handler::EoiFirst), expected);
            pending.store(0, SeqCst);
            let _ = plain.slot.notify_upcall(pending);
            assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1, "the next edge");
        }
    }
}

#[test]
fn many_edges_and_toggles() {
    for way in WAYS {
        for handler in HANDLERS {
            let mut plain = processor(RefusedUpcall::Owed);
            let pending = plain.pending;
            register(&plain, pending);
            for round in 0..100 {
                let enabled = round % 3 != 0;
                plain.write_svr(way, if enabled { 0x1FF } else { 0xFF });
                let _ = plain.slot.notify_upcall(pending);
                let _ = plain.slot.notify_upcall(pending);
                let seen = run(&mut plain, pending, handler);
                assert_eq!(seen, usize::from(enabled));
                if !enabled {
                    plain.write_svr(way, 0x1FF);
                    assert_eq!(run(&mut plain, pending, handler), 1, "{way:?} {handler:?}");
                }
            }
        }
    }
}

#[test]
fn an_upcall_the_guest_no_longer_wants() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    register(&plain, pending);
    let _ = plain.slot.notify_upcall(pending);
    pending.store(0, SeqCst);
    assert!(!plain.apic.prepare(0).upcall_owed);
    plain.enable();
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 0);
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1);
}

#[test]
fn the_bytes_other_bits_are_the_guests() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    pending.store(0x80, SeqCst);
    register(&plain, pending);
    plain.enable();
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 0);
    pending.store(0x80, SeqCst);
    let _ = plain.slot.notify_upcall(pending);
    assert_eq!(pending.load(SeqCst), 0x81);
}

#[test]
fn illegal_upcall_vectors() {
    let plain = processor(RefusedUpcall::Owed);
    let pending = plain.pending;
    pending.store(1, SeqCst);
    for vector in 0..16 {
        assert!(plain.slot.register_upcall(vector, pending).is_err());
    }
    assert!(plain.slot.register_upcall(16, pending).is_ok());
}

#[test]
fn an_upcall_while_there_is_no_apic() {
    let mut plain = Plain::enabled(Profile::intel());
    let pending = plain.pending;
    register(&plain, pending);
    plain.set_msr(0x1B, 0xFEE0_0100);
    let _ = plain.slot.notify_upcall(pending);
    assert!(plain.apic.prepare(0).upcall_owed);
    plain.set_msr(0x1B, 0xFEE0_0900);
    assert!(plain.apic.prepare(0).upcall_owed, "software-disabled now");
    plain.enable();
    assert_eq!(run(&mut plain, pending, Handler::EoiFirst), 1);
}
