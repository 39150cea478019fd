//! dekker_mark_vs_enable: a poster on one CPU against a guest on another that enables its APIC with
//! nobody told. No upcall may be lost, none doubled.

#![expect(clippy::panic, reason = "helpers of tests")]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use vlapic_core::{Notify, Profile, RefusedUpcall, Register};
use vlapic_tests::plain::Plain;

const UPCALL: u8 = 0xF3;

/// The host's kick: the vCPU goes through its entry work once more.
#[derive(Default)]
struct Kick(AtomicBool);

impl Kick {
    fn carry_out(&self, notify: Notify) {
        match notify {
            Notify::None => {}
            Notify::Kick => self.0.store(true, SeqCst),
            other => panic!("{other:?} from a direct inbox"),
        }
    }

    fn take(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

fn wait_for(value: &AtomicUsize, target: usize) {
    let mut spins = 0u32;
    while value.load(SeqCst) < target {
        spins += 1;
        if spins.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// One edge a round; the store to SVR races with it.
#[test]
fn dekker_mark_vs_enable() {
    const ROUNDS: usize = 30_000;
    let mut plain = Plain::with(Profile::intel(), 0, true, RefusedUpcall::Owed);
    let (pending, kick) = (plain.pending, Kick::default());
    let (begun, posted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slot = plain.slot;
    let _ = slot.register_upcall(UPCALL, pending).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&begun, round);
                for _ in 0..round % 173 {
                    std::hint::spin_loop();
                }
                kick.carry_out(slot.notify_upcall(pending));
                posted.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            // Now and then enabled before the poster comes, so that both orders are sure to be seen.
            slot.page().write(Register::Svr, if round % 16 == 8 { 0x1FF } else { 0xFF });
            begun.store(round, SeqCst);
            match round % 16 {
                // On a busy host only waiting makes sure of an order.
                0 => {
                    wait_for(&posted, round);
                    assert_eq!(plain.irr(), [], "refused");
                }
                8 => {
                    wait_for(&posted, round);
                    assert_eq!(plain.irr(), [UPCALL], "accepted with nobody's help");
                }
                1..8 => std::thread::yield_now(),
                _ => (0..round % 1009).for_each(|_| std::hint::spin_loop()),
            }
            slot.page().write(Register::Svr, 0x1FF);
            let _ = plain.apic.prepare(0);
            wait_for(&posted, round);
            if plain.apic.nominate().is_none() {
                assert!(kick.take(), "round {round}: neither delivered nor kicked");
                let _ = plain.apic.prepare(0);
            }
            assert_eq!(plain.irr(), [UPCALL], "round {round}: lost");
            assert_eq!(plain.apic.acknowledge(), UPCALL);
            pending.store(0, SeqCst);
            plain.set(Register::Eoi, 0);
            kick.take();
            let _ = plain.apic.prepare(0);
            assert_eq!(plain.irr(), [], "round {round}: doubled");
        }
    });
}

/// Edges as fast as they come, the guest switching its APIC on and off and handling all the while.
#[test]
fn a_storm_of_edges_against_toggles() {
    const EDGES: usize = 60_000;
    for eoi_first in [false, true] {
        let mut plain = Plain::with(Profile::intel(), 0, true, RefusedUpcall::Owed);
        let (pending, kick) = (plain.pending, Kick::default());
        let (done, events) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let slot = plain.slot;
        let _ = slot.register_upcall(UPCALL, pending).unwrap();
        let _ = plain.apic.prepare(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..EDGES / 2 {
                        events.fetch_add(1, SeqCst);
                        kick.carry_out(slot.notify_upcall(pending));
                    }
                    done.fetch_add(1, SeqCst);
                });
            }
            let (mut handled, mut seen, mut spurious) = (0, 0, 0);
            let mut turn = 0usize;
            loop {
                turn += 1;
                let finished = done.load(SeqCst) == 2;
                let on = finished || !turn.is_multiple_of(5);
                slot.page().write(Register::Svr, if on { 0x1FF } else { 0xFF });
                kick.take();
                let _ = plain.apic.prepare(0);
                let Some(vector) = plain.apic.nominate() else {
                    if finished && !kick.take() {
                        break;
                    }
                    continue;
                };
                assert!(plain.apic.commit(vector));
                seen += 1;
                if eoi_first {
                    plain.set(Register::Eoi, 0);
                }
                if pending.swap(0, SeqCst) == 0 {
                    spurious += 1;
                }
                handled = events.load(SeqCst);
                if !eoi_first {
                    plain.set(Register::Eoi, 0);
                }
            }
            assert_eq!(handled, EDGES, "events nobody told the guest of ({seen} upcalls)");
            assert_eq!(pending.load(SeqCst), 0, "a byte left set is a deaf vCPU");
            assert_eq!(spurious, 0, "of {seen} upcalls");
        });
    }
}

/// INIT against posts of an ordinary vector: what was posted before it must not show afterwards.
#[test]
fn init_against_posts() {
    const ROUNDS: usize = 20_000;
    let mut plain = Plain::with(Profile::intel(), 0, true, RefusedUpcall::Owed);
    let (begun, posted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slot = plain.slot;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&begun, round);
                for _ in 0..round % 13 {
                    std::hint::spin_loop();
                }
                let _ = slot.request(0x55, vlapic_core::Trigger::Edge);
                posted.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            plain.enable();
            begun.store(round, SeqCst);
            for _ in 0..round % 29 {
                std::hint::spin_loop();
            }
            plain.apic.init();
            wait_for(&posted, round);
            assert_eq!(plain.irr(), [], "round {round}: a post from before INIT");
        }
    });
}
