//! Every TPR with every vector, and every pair of vectors, against the manuals' tables.

use vlapic_core::{Effect, Outcome, Profile, Register, Trigger, Vector};
use vlapic_tests::manual::priority::{delivered, ppr};
use vlapic_tests::plain::Plain;

fn vector(raw: u8) -> Vector {
    Vector::new(raw).expect("not below 16")
}

fn clear(plain: &Plain) {
    let page = plain.slot.page();
    page.irr().clear();
    page.isr().clear();
    plain.apic.update_ppr();
}

#[test]
fn every_tpr_with_every_vector_requested() {
    let mut plain = Plain::enabled(Profile::intel());
    for raw in 16..=255u8 {
        assert_eq!(plain.slot.request(raw, Trigger::Edge).outcome, Outcome::Accepted);
        for tpr in 0..=255u8 {
            plain.set(Register::Tpr, u32::from(tpr));
            assert_eq!(plain.read(Register::Ppr), u32::from(ppr(tpr, 0)), "{tpr:#x}");
            let expected = delivered(raw, ppr(tpr, 0)).then(|| vector(raw));
            assert_eq!(plain.apic.nominate(), expected, "{raw:#x} under {tpr:#x}");
        }
        clear(&plain);
    }
}

#[test]
fn every_tpr_with_every_vector_in_service() {
    let mut plain = Plain::enabled(Profile::intel());
    for raw in 16..=255u8 {
        plain.set(Register::Tpr, 0);
        let _ = plain.slot.request(raw, Trigger::Edge);
        assert!(plain.apic.commit(vector(raw)));
        for tpr in 0..=255u8 {
            plain.set(Register::Tpr, u32::from(tpr));
            let expected = u32::from(ppr(tpr, raw));
            assert_eq!(plain.read(Register::Ppr), expected, "{raw:#x} under {tpr:#x}");
            assert_eq!(plain.slot.page().read(Register::Ppr), expected, "the page's");
        }
        clear(&plain);
    }
}

#[test]
fn every_pair_of_one_in_service_and_one_requested() {
    let mut plain = Plain::enabled(Profile::intel());
    for served in 16..=255u8 {
        for waiting in 16..=255u8 {
            let _ = plain.slot.request(served, Trigger::Edge);
            assert!(plain.apic.commit(vector(served)));
            let _ = plain.slot.request(waiting, Trigger::Edge);
            let taken = delivered(waiting, ppr(0, served)).then(|| vector(waiting));
            assert_eq!(plain.apic.nominate(), taken, "{waiting:#x} over {served:#x}");
            // Once it has ended, nothing holds the other back.
            plain.set(Register::Eoi, 0);
            assert_eq!(plain.apic.nominate(), Some(vector(waiting)));
            clear(&plain);
        }
    }
}

#[test]
fn every_pair_in_service_ends_from_the_top() {
    let mut plain = Plain::enabled(Profile::intel());
    for low in 16..=255u8 {
        for high in 16..=255u8 {
            let level = (low ^ high) & 1 != 0;
            let trigger = if level { Trigger::Level } else { Trigger::Edge };
            for raw in [low, high] {
                let _ = plain.slot.request(raw, trigger);
                // Nested whatever the order: what is in service is what was committed.
                assert!(plain.apic.commit(vector(raw)));
            }
            let (first, last) = (low.max(high), low.min(high));
            for ended in if low == high { vec![first] } else { vec![first, last] } {
                let expected =
                    if level { Effect::EndOfInterrupt(vector(ended)) } else { Effect::None };
                assert_eq!(plain.write(Register::Eoi, 0), expected, "{low:#x} {high:#x}");
                assert!(!plain.slot.page().isr().contains(vector(ended)));
            }
            assert!(plain.slot.page().isr().is_empty());
            assert_eq!(plain.write(Register::Eoi, 0), Effect::None, "nothing is left to end");
        }
    }
}

#[test]
fn every_pair_is_accepted_with_its_trigger_mode() {
    let plain = Plain::enabled(Profile::intel());
    let page = plain.slot.page();
    for first in 0..=255u8 {
        for second in 0..=255u8 {
            for (one, other) in [(Trigger::Edge, Trigger::Level), (Trigger::Level, Trigger::Edge)] {
                let outcomes = [(first, one), (second, other)]
                    .map(|(raw, trigger)| plain.slot.request(raw, trigger).outcome);
                for (raw, outcome) in [first, second].into_iter().zip(outcomes) {
                    let legal = raw >= 16;
                    assert_eq!(outcome == Outcome::Accepted, legal, "{raw:#x}");
                    assert_eq!(outcome == Outcome::IllegalVector, !legal, "{raw:#x}");
                }
                for (raw, trigger) in [(first, one), (second, other)] {
                    let Some(vector) = Vector::new(raw) else { continue };
                    assert!(page.irr().contains(vector));
                    // The later of two acceptances counts.
                    let trigger = if first == second { other } else { trigger };
                    assert_eq!(page.tmr().contains(vector), trigger == Trigger::Level);
                }
                let members = [first, second].map(|raw| usize::from(raw >= 16));
                let count = if first == second { members[0] } else { members[0] + members[1] };
                assert_eq!(
                    (0..8).map(|bank| page.irr().bank(bank).count_ones()).sum::<u32>(),
                    count as u32
                );
                page.irr().clear();
            }
        }
    }
}
