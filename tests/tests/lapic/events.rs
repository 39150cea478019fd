//! INIT, SIPI, NMI, SMI, ExtINT, and the LVT entries that raise them.

use vlapic_core::{
    Delivery, Effect, Event, LvtEntry, Notify, Outcome, Profile, RefusedUpcall, Register, Trigger,
};
use vlapic_tests::plain::Plain;

fn processor(bootstrap: bool) -> Plain {
    Plain::with(Profile::intel(), 1, bootstrap, RefusedUpcall::Owed)
}

fn outcome(plain: &Plain, delivery: Delivery) -> Outcome {
    plain.slot.receive(delivery).outcome
}

#[test]
fn bring_up_of_a_processor() {
    let mut plain = processor(false);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 0x9A }), Outcome::Accepted, "it waits");
    assert_eq!(plain.apic.take_event(), Some(Event::Startup { page: 0x9A }));
    assert!(plain.slot.online());
    assert_eq!(outcome(&plain, Delivery::Startup { page: 0x9B }), Outcome::Refused, "it runs");
    assert_eq!(outcome(&plain, Delivery::Init), Outcome::Accepted);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 0x9C }), Outcome::Accepted);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 0x9D }), Outcome::Refused, "the second");
    assert!(plain.apic.prepare(0).event);
    assert_eq!(plain.apic.take_event(), Some(Event::Init { waits: true }));
    assert_eq!(plain.apic.take_event(), Some(Event::Startup { page: 0x9C }));
    assert_eq!(plain.apic.take_event(), None);
    assert!(!plain.apic.prepare(0).event);
}

#[test]
fn a_bootstrap_processor_ignores_sipi() {
    let mut plain = processor(true);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 1 }), Outcome::Refused);
    assert_eq!(outcome(&plain, Delivery::Init), Outcome::Accepted);
    let _ = plain.slot.receive(Delivery::Startup { page: 1 });
    assert_eq!(plain.apic.take_event(), Some(Event::Init { waits: false }));
    assert_eq!(plain.apic.take_event(), None);
    assert!(plain.slot.online());
}

#[test]
fn an_init_voids_the_sipi_before_it() {
    let mut plain = processor(false);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 1 }), Outcome::Accepted);
    assert_eq!(outcome(&plain, Delivery::Init), Outcome::Accepted);
    assert_eq!(plain.apic.take_event(), Some(Event::Init { waits: true }));
    assert_eq!(plain.apic.take_event(), None);
    assert!(!plain.slot.online());
}

#[test]
fn while_waiting_others_are_held() {
    let mut plain = processor(false);
    assert_eq!(outcome(&plain, Delivery::Nmi), Outcome::Accepted);
    assert_eq!(outcome(&plain, Delivery::Smi), Outcome::Accepted);
    assert!(!plain.apic.prepare(0).event);
    assert_eq!(plain.apic.take_event(), None);
    assert_eq!(outcome(&plain, Delivery::Startup { page: 8 }), Outcome::Accepted);
    let mut taken = Vec::new();
    while let Some(event) = plain.apic.take_event() {
        taken.push(event);
    }
    assert_eq!(taken, [Event::Startup { page: 8 }, Event::Smi, Event::Nmi]);
}

#[test]
fn latches_do_not_touch_the_page() {
    let plain = Plain::enabled(Profile::intel());
    for delivery in [Delivery::Nmi, Delivery::Smi, Delivery::ExtInt, Delivery::Init] {
        assert_eq!(plain.slot.receive(delivery).notify, Notify::Kick);
    }
    assert_eq!((plain.irr(), plain.isr()), (vec![], vec![]));
}

#[test]
fn extint_is_taken_once() {
    let mut plain = Plain::enabled(Profile::intel());
    assert_eq!(outcome(&plain, Delivery::ExtInt), Outcome::Accepted);
    assert_eq!(plain.apic.take_event(), Some(Event::ExtInt));
    assert_eq!(plain.apic.take_event(), None);
}

#[test]
fn entries_deliver_what_they_say() {
    for entry in [LvtEntry::Cmci, LvtEntry::Thermal, LvtEntry::Performance] {
        let mut plain = Plain::enabled(Profile::intel());
        assert_eq!(plain.slot.local_event(entry).outcome, Outcome::Refused, "masked: dropped");
        for (bits, event) in [(0x200, Event::Smi), (0x400, Event::Nmi)] {
            let _ = plain.write_lvt(entry, bits);
            assert_eq!(plain.slot.local_event(entry).outcome, Outcome::Accepted);
            assert_eq!(plain.apic.take_event(), Some(event));
        }
        let _ = plain.write_lvt(entry, 0x55);
        assert_eq!(plain.slot.local_event(entry).outcome, Outcome::Accepted);
        assert_eq!(plain.irr(), [0x55]);
        for reserved in [0x155, 0x355, 0x555, 0x655, 0x755] {
            let _ = plain.write_lvt(entry, reserved);
            assert_eq!(plain.slot.local_event(entry).outcome, Outcome::Refused, "{reserved:#x}");
        }
        assert_eq!(plain.apic.take_event(), None);
    }
}

#[test]
fn an_entry_that_is_not_there() {
    let plain = Plain::enabled(Profile::amd());
    plain.slot.page().store(0x2F0, 0x55);
    assert_eq!(plain.slot.local_event(LvtEntry::Cmci).outcome, Outcome::Refused);
    assert_eq!(plain.irr(), []);
}

#[test]
fn intels_performance_entry_masks_itself() {
    for (profile, left) in [(Profile::intel(), 0x1_0400), (Profile::amd(), 0x400)] {
        let mut plain = Plain::enabled(profile);
        let _ = plain.write_lvt(LvtEntry::Performance, 0x400);
        assert_eq!(plain.slot.local_event(LvtEntry::Performance).outcome, Outcome::Accepted);
        assert_eq!(plain.read(Register::Lvt(LvtEntry::Performance)), left);
    }
}

#[test]
fn the_timers_entry_is_fixed_whatever_the_page_says() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.slot.page().write(Register::Lvt(LvtEntry::Timer), 0x0000_F741);
    assert_eq!(plain.slot.local_event(LvtEntry::Timer).outcome, Outcome::Accepted);
    assert_eq!((plain.irr(), plain.apic.take_event()), (vec![0x41], None));
}

#[test]
fn self_ipis() {
    let mut xapic = Plain::enabled(Profile::intel());
    assert_eq!(xapic.store(0x300, 0x4_0041), Effect::None);
    assert_eq!(xapic.irr(), [0x41]);
    let mut x2apic = Plain::x2apic(Profile::intel(), 1);
    x2apic.enable();
    assert_eq!(x2apic.wrmsr(0x83F, 0x41), Ok(Effect::None));
    assert_eq!(x2apic.wrmsr(0x830, 0x4_0042), Ok(Effect::None));
    assert_eq!(x2apic.irr(), [0x42, 0x41]);
    assert_eq!(x2apic.slot.page().tmr().iter().count(), 0);
    let mut disabled = Plain::x2apic(Profile::intel(), 1);
    assert_eq!(disabled.wrmsr(0x83F, 0x41), Ok(Effect::None));
    assert_eq!(disabled.irr(), []);
}

#[test]
fn a_level_request_sets_tmr_first_and_an_edge_clears_it() {
    let plain = Plain::enabled(Profile::intel());
    for (trigger, member) in [(Trigger::Level, true), (Trigger::Edge, false)] {
        assert_eq!(outcome(&plain, Delivery::Fixed { vector: 0x91, trigger }), Outcome::Accepted);
        assert_eq!(plain.slot.page().tmr().iter().count() == 1, member);
    }
}

#[test]
fn init_and_sipi_against_the_owner() {
    const ROUNDS: u32 = 1_000;
    let mut plain = processor(false);
    let slot = plain.slot;
    let sent = std::sync::atomic::AtomicU32::new(0);
    let started = std::sync::atomic::AtomicU32::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                // Twice, as operating systems do; the second pair may meet the first being taken.
                for page in [0, round as u8 | 1] {
                    (0..round * 37 % 1500).for_each(|_| std::hint::spin_loop());
                    let _ = slot.receive(Delivery::Init);
                    let _ = slot.receive(Delivery::Startup { page });
                }
                sent.store(round, order);
                while started.load(order) < round {
                    std::thread::yield_now();
                }
            }
        });
        for round in 1..=ROUNDS {
            let mut last = None;
            loop {
                let all_sent = sent.load(order) == round;
                match plain.apic.take_event() {
                    Some(Event::Startup { page }) => last = Some(page),
                    Some(Event::Init { .. }) => last = None,
                    Some(other) => panic!("{other:?}"),
                    None if all_sent => break,
                    None => std::hint::spin_loop(),
                }
            }
            assert_eq!(last, Some(round as u8 | 1), "round {round}: the last SIPI is lost");
            started.store(round, order);
        }
    });
}
