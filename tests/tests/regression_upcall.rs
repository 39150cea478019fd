//! Named scenarios of upcalls and of what "enabled" means. Each is a mistake that a hypervisor made,
//! or could make, by keeping a copy of the enable state.

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::SeqCst;

use vlapic_core::{
    Delivery, Destination, Event, LvtEntry, Message, Notify, Outcome, Pin, Profile, RefusedUpcall,
    Register, Trigger, Vector,
};
use vlapic_tests::plain::{Plain, vm};

const UPCALL: u8 = 0xF3;

/// How the guest's store to SVR comes to the driver.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The driver carries it out.
    Emulated,
    /// The processor has stored it and exits.
    ApicWrite,
    /// The processor has stored it and says nothing.
    Silent,
}

const WAYS: [Way; 3] = [Way::Emulated, Way::ApicWrite, Way::Silent];

/// In which order a handler ends the interrupt and clears the pending byte.
#[derive(Clone, Copy, Debug)]
enum Handler {
    EoiFirst,
    ClearFirst,
}

const HANDLERS: [Handler; 2] = [Handler::EoiFirst, Handler::ClearFirst];

fn write_svr(plain: &mut Plain, way: Way, value: u32) {
    match way {
        Way::Emulated => plain.set(Register::Svr, value),
        Way::ApicWrite => {
            plain.slot.page().write(Register::Svr, value);
            let _ = plain.apic.after_write(Register::Svr, plain.now);
        }
        Way::Silent => plain.slot.page().write(Register::Svr, value),
    }
}

/// Runs the guest until it has nothing more to take; says how many upcalls it saw.
fn run(plain: &mut Plain, pending: &AtomicU8, handler: Handler) -> usize {
    for seen in 0..10 {
        let _ = plain.apic.prepare(plain.now, Some(pending));
        let Some(vector) = plain.apic.nominate() else { return seen };
        assert_eq!(vector.get(), UPCALL);
        assert!(plain.apic.commit(vector));
        match handler {
            Handler::EoiFirst => {
                plain.set(Register::Eoi, 0);
                let _ = plain.apic.prepare(plain.now, Some(pending));
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
            let pending = AtomicU8::new(1);
            register(&plain, &pending);
            assert_eq!(plain.slot.notify_upcall(&pending), Notify::None, "no edge");
            let prepared = plain.apic.prepare(0, Some(&pending));
            assert!(prepared.upcall_owed);
            assert_eq!((plain.irr(), plain.isr()), (vec![], vec![]), "the guest's stale check");
            write_svr(&mut plain, way, 0x1FF);
            assert_eq!(run(&mut plain, &pending, handler), 1, "{way:?} {handler:?}");
            assert!(!plain.apic.prepare(0, Some(&pending)).upcall_owed);
        }
    }
}

#[test]
fn pending_before_vector() {
    for policy in [RefusedUpcall::Owed, RefusedUpcall::Lost, RefusedUpcall::OwedWhileOnline] {
        for by_notify in [false, true] {
            let mut plain = processor(policy);
            let pending = AtomicU8::new(0);
            plain.enable();
            if by_notify {
                assert_eq!(plain.slot.notify_upcall(&pending), Notify::None, "no vector yet");
            } else {
                pending.store(1, SeqCst);
            }
            assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 0);
            register(&plain, &pending);
            assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1, "{policy:?}");
        }
    }
}

#[test]
fn upcall_lost_spiv_write_without_exit() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    assert_eq!(plain.slot.notify_upcall(&pending), Notify::Kick, "make it look again");
    write_svr(&mut plain, Way::Silent, 0x1FF);
    assert_eq!(plain.irr(), [], "nobody has looked");
    assert!(!plain.apic.prepare(0, Some(&pending)).upcall_owed);
    assert_eq!(plain.irr(), [UPCALL]);
}

#[test]
fn spiv_disable_without_exit() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 100);
    write_svr(&mut plain, Way::Silent, 0xFF);
    assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(plain.read(Register::Lvt(LvtEntry::Timer)), 0x1_0041, "reads masked");
    plain.now = 1000;
    let _ = plain.apic.prepare(1000, None);
    assert_eq!(plain.irr(), []);
    // The driver has seen it disabled, so masks stay set however it is enabled again.
    write_svr(&mut plain, Way::Silent, 0x1FF);
    assert_eq!(plain.slot.page().load(0x320), 0x1_0041);
}

#[test]
fn spiv_enabled_rewrite_no_duplicate() {
    for way in WAYS {
        let mut plain = processor(RefusedUpcall::Owed);
        let pending = AtomicU8::new(0);
        register(&plain, &pending);
        plain.enable();
        let _ = plain.slot.notify_upcall(&pending);
        assert_eq!(plain.apic.acknowledge(), UPCALL);
        for svr in [0x1EF, 0x1FF, 0x0FF, 0x1FF] {
            write_svr(&mut plain, way, svr);
            let _ = plain.apic.prepare(0, Some(&pending));
        }
        assert_eq!(plain.irr(), [], "{way:?}: still the same edge");
        pending.store(0, SeqCst);
        plain.set(Register::Eoi, 0);
        assert_eq!(run(&mut plain, &pending, Handler::ClearFirst), 0);
    }
}

#[test]
fn registration_when_not_pending() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    plain.enable();
    assert_eq!(plain.slot.register_upcall(UPCALL, &pending), Ok(Notify::None));
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 0);
}

#[test]
fn pending_byte_survives_init() {
    for way in WAYS {
        let mut plain = processor(RefusedUpcall::Owed);
        let pending = AtomicU8::new(0);
        register(&plain, &pending);
        plain.enable();
        let _ = plain.slot.notify_upcall(&pending);
        assert_eq!(plain.slot.receive(Delivery::Init).outcome, Outcome::Accepted);
        assert_eq!(plain.slot.receive(Delivery::Startup { page: 1 }).outcome, Outcome::Accepted);
        while plain.apic.take_event().is_some() {}
        assert_eq!(plain.irr(), [], "INIT empties IRR");
        assert!(plain.apic.prepare(0, Some(&pending)).upcall_owed);
        assert_eq!(plain.irr(), []);
        write_svr(&mut plain, way, 0x1FF);
        assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1);
    }
}

#[test]
fn after_init_a_cleared_byte_owes_nothing() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.apic.init();
    let prepared = plain.apic.prepare(0, Some(&pending));
    assert!(!prepared.upcall_owed, "nobody has to watch SVR");
    plain.enable();
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 0);
}

#[test]
fn vector_change_leaves_old_irr() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.enable();
    plain.set(Register::Tpr, 0xF0);
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(plain.slot.register_upcall(0x30, &pending), Ok(Notify::None));
    let _ = plain.apic.prepare(0, Some(&pending));
    assert_eq!(plain.irr(), [UPCALL], "hardware cannot recall it, and it is one edge");
    pending.store(0, SeqCst);
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(plain.irr(), [UPCALL, 0x30], "a new edge has the new vector");
}

#[test]
fn upcall_from_irq_context() {
    // Requested while enabled, carried out after the guest has disabled its APIC.
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.enable();
    write_svr(&mut plain, Way::Silent, 0xFF);
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(plain.irr(), []);
    write_svr(&mut plain, Way::Silent, 0x1FF);
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1);
}

#[test]
fn upcall_bsp_before_percpu_flag() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.enable();
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(plain.apic.acknowledge(), UPCALL);
    pending.store(0, SeqCst);
    // The handler returns without EOI: lower classes stay blocked, as on hardware.
    assert_eq!(plain.slot.request(0x41, Trigger::Edge).outcome, Outcome::Accepted);
    let _ = plain.apic.prepare(0, Some(&pending));
    assert_eq!((plain.isr(), plain.apic.nominate()), (vec![UPCALL], None));
}

#[test]
fn restore_flag_contradicts_page() {
    // The page is all there is to restore.
    let plain = processor(RefusedUpcall::Owed);
    plain.slot.page().write(Register::Svr, 0x1FF);
    assert!(plain.slot.accepts());
    assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
}

#[test]
fn restore_loses_upcall_vector() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.enable();
    let _ = plain.slot.notify_upcall(&pending);
    // A fresh slot with the old byte: events that come meanwhile are no edges.
    let mut restored = processor(RefusedUpcall::Owed);
    restored.enable();
    assert_eq!(restored.slot.notify_upcall(&pending), Notify::None);
    assert_eq!(run(&mut restored, &pending, Handler::EoiFirst), 0);
    register(&restored, &pending);
    assert_eq!(run(&mut restored, &pending, Handler::EoiFirst), 1);
}

#[test]
fn external_irq_while_sw_disabled() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8052);
    plain.set(Register::Svr, 0xFF);
    for trigger in [Trigger::Edge, Trigger::Level] {
        assert_eq!(plain.slot.request(0x61, trigger).outcome, Outcome::Refused, "ask again");
    }
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    let _ = plain.apic.prepare(0, None);
    assert_eq!(plain.irr(), []);
    assert_eq!(plain.load(0x350), 0x1_8052, "no remote IRR from a refused message");
    plain.enable();
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8052);
    let _ = plain.apic.prepare(0, None);
    assert_eq!(plain.irr(), [0x52], "the level is still there");
}

#[test]
fn staged_irq_kept_over_transient_disable() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
        write_svr(&mut plain, way, 0xFF);
        let _ = plain.apic.prepare(0, None);
        assert_eq!(plain.load(0x220), 1 << 21, "readable while off");
        write_svr(&mut plain, way, 0x1FF);
        let _ = plain.apic.prepare(0, None);
        assert_eq!(plain.apic.acknowledge(), 0x55);
        assert_eq!(plain.irr(), [], "once");
        assert_eq!(plain.slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
        plain.apic.reset(true);
        assert_eq!(plain.irr(), [], "RESET discards");
    }
}

#[test]
fn pending_timer_irr_at_soft_disable() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 1);
    let _ = plain.apic.prepare(100, None);
    plain.set(Register::Svr, 0xFF);
    assert_eq!(plain.slot.receive(Delivery::Nmi).outcome, Outcome::Accepted);
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert_eq!(plain.irr(), [0x41], "held, not lost");
}

#[test]
fn svr_last_not_restored() {
    let mut plain = Plain::new(Profile::intel());
    plain.slot.page().write(Register::Svr, 0x1FF);
    plain.slot.page().write(Register::Lvt(LvtEntry::Error), 0x99);
    plain.set(Register::Svr, 0xFF);
    assert_eq!(plain.load(0x370), 0x1_0099, "no old value decides about the masks");
}

#[test]
fn svr_toggle_restarts_timer() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        plain.set(Register::DivideConfiguration, 0xB);
        let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
        plain.set(Register::InitialCount, 100);
        plain.now = 50;
        write_svr(&mut plain, way, 0xFF);
        let _ = plain.apic.prepare(50, None);
        write_svr(&mut plain, way, 0x1FF);
        assert_eq!(plain.load(0x390), 50, "{way:?}");
        assert_eq!(plain.apic.prepare(50, None).deadline, Some(100));
    }
}

#[test]
fn lvt_unmask_while_sw_disabled() {
    for way in WAYS {
        let mut plain = Plain::enabled(Profile::intel());
        write_svr(&mut plain, way, 0xFF);
        let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
        assert_eq!(plain.load(0x320), 0x1_0041);
        write_svr(&mut plain, way, 0x1FF);
        assert_eq!(plain.load(0x320), 0x1_0041, "until the guest clears it");
        let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
        assert_eq!(plain.load(0x320), 0x41);
    }
}

#[test]
fn hw_disable_pic_passthrough() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    plain.set(Register::Svr, 0xFF);
    assert!(!plain.apic.external_interrupt_pending(), "software-disabled is not absent");
    plain.set_msr(0x1B, 0xFEE0_0100);
    assert!(plain.apic.external_interrupt_pending());
}

#[test]
fn lowest_priority_skips_disabled() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1]);
    vcpus[1].enable();
    let delivery = Delivery::LowestPriority { vector: 0x50, trigger: Trigger::Edge };
    let message = Message { delivery, destination: Destination::All };
    assert_eq!(vm.send(&message, None).map(|(index, _)| index).collect::<Vec<_>>(), [1]);
    assert_eq!(vcpus[1].irr(), [0x50]);
}

#[test]
fn vector_0x10_to_0x1f() {
    for vector in 0x10..=0x1F {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.request(vector, Trigger::Level).outcome, Outcome::Accepted);
        assert_eq!(plain.apic.acknowledge(), vector);
        let ended = plain.write(Register::Eoi, 0);
        assert_eq!(ended, vlapic_core::Effect::EndOfInterrupt(Vector::new(vector).unwrap()));
        assert_eq!(plain.isr(), []);
    }
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
            let pending = AtomicU8::new(0);
            register(&plain, &pending);
            let _ = plain.slot.notify_upcall(&pending);
            let prepared = plain.apic.prepare(0, Some(&pending));
            assert_eq!(prepared.upcall_owed, expected == 1, "{policy:?} {online}");
            write_svr(&mut plain, way, 0x1FF);
            assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), expected);
            pending.store(0, SeqCst);
            let _ = plain.slot.notify_upcall(&pending);
            assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1, "the next edge");
        }
    }
}

#[test]
fn many_edges_and_toggles() {
    for way in WAYS {
        for handler in HANDLERS {
            let mut plain = processor(RefusedUpcall::Owed);
            let pending = AtomicU8::new(0);
            register(&plain, &pending);
            for round in 0..100 {
                let enabled = round % 3 != 0;
                write_svr(&mut plain, way, if enabled { 0x1FF } else { 0xFF });
                let _ = plain.slot.notify_upcall(&pending);
                let _ = plain.slot.notify_upcall(&pending);
                let seen = run(&mut plain, &pending, handler);
                assert_eq!(seen, usize::from(enabled));
                if !enabled {
                    write_svr(&mut plain, way, 0x1FF);
                    assert_eq!(run(&mut plain, &pending, handler), 1, "{way:?} {handler:?}");
                }
            }
        }
    }
}

#[test]
fn an_upcall_the_guest_no_longer_wants() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    let _ = plain.slot.notify_upcall(&pending);
    pending.store(0, SeqCst);
    assert!(!plain.apic.prepare(0, Some(&pending)).upcall_owed);
    plain.enable();
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 0);
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1);
}

#[test]
fn the_bytes_other_bits_are_the_guests() {
    let mut plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(0x80);
    register(&plain, &pending);
    plain.enable();
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 0);
    pending.store(0x80, SeqCst);
    let _ = plain.slot.notify_upcall(&pending);
    assert_eq!(pending.load(SeqCst), 0x81);
}

#[test]
fn illegal_upcall_vectors() {
    let plain = processor(RefusedUpcall::Owed);
    let pending = AtomicU8::new(1);
    for vector in 0..16 {
        assert!(plain.slot.register_upcall(vector, &pending).is_err());
    }
    assert!(plain.slot.register_upcall(16, &pending).is_ok());
}

#[test]
fn an_upcall_while_there_is_no_apic() {
    let mut plain = Plain::enabled(Profile::intel());
    let pending = AtomicU8::new(0);
    register(&plain, &pending);
    plain.set_msr(0x1B, 0xFEE0_0100);
    let _ = plain.slot.notify_upcall(&pending);
    assert!(plain.apic.prepare(0, Some(&pending)).upcall_owed);
    plain.set_msr(0x1B, 0xFEE0_0900);
    assert!(plain.apic.prepare(0, Some(&pending)).upcall_owed, "software-disabled now");
    plain.enable();
    assert_eq!(run(&mut plain, &pending, Handler::EoiFirst), 1);
}
