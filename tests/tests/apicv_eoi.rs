//! Named scenarios of TMR, EOI exits and interrupt status, with the driver on the model.

use vlapic_core::{Effect, LvtEntry, Notify, Register, Trigger, Vector};
use vlapic_hal::wrap::Count;
use vlapic_tests::hypervisor::{Config, Hypervisor, Level, run_enabled};
use vlapic_tests::model::{ExitReason, field};

const LEVELS: [Level; 3] =
    [Level::VirtualInterruptDelivery, Level::Posted, Level::IpiVirtualization];

fn vector(raw: u8) -> Vector {
    Vector::new(raw).expect("a legal vector")
}

/// RVI and SVI as the processor has them in guest mode.
fn status(hypervisor: &mut Hypervisor<'_>) -> (u8, u8) {
    hypervisor.core(0).interrupt_status().expect("a guest that runs")
}

fn eoi_bitmap(hypervisor: &mut Hypervisor<'_>) -> [u64; 4] {
    let region = hypervisor.core(0).vmcs().expect("a current VMCS");
    field::EOI_EXIT_BITMAP.map(|encoding| region.get(encoding))
}

/// At the moment a level-triggered vector can be taken, its EOI exits already: whatever was loaded before.
#[test]
fn tmr_before_irr() {
    for level in LEVELS {
        run_enabled(Config::new(level), |hypervisor| {
            for raw in 0x20..=0xff {
                let _ = hypervisor.post(0, raw, Trigger::Level);
                assert_eq!(hypervisor.taken(0).last(), Some(&raw));
                let exits = hypervisor.core(0).vmcs().map(|region| {
                    region.get(field::EOI_EXIT_BITMAP[usize::from(raw / 64)]) >> (raw % 64) & 1
                });
                assert_eq!(exits, Some(1), "{raw:#x} at {level:?}");
                hypervisor.eoi(0);
                assert_eq!(hypervisor.broadcasts(0).last(), Some(&raw));
            }
            assert_eq!(hypervisor.broadcasts(0).len(), 0xe0);
        });
    }
}

/// An edge that follows a level-triggered interrupt of the same vector is not broadcast, and costs no exit once the bitmap
/// was loaded anew.
#[test]
fn tmr_cleared_on_edge_acceptance_not_eoi() {
    for level in LEVELS {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.post(0, 0x61, Trigger::Level);
            hypervisor.eoi(0);
            assert_eq!(
                hypervisor.page_word(0, Register::at(0x1b0).unwrap()),
                1 << 1,
                "EOI leaves TMR"
            );
            let _ = hypervisor.post(0, 0x61, Trigger::Edge);
            assert_eq!(
                hypervisor.page_word(0, Register::at(0x1b0).unwrap()),
                0,
                "the edge clears it"
            );
            hypervisor.eoi(0);
            assert_eq!(hypervisor.broadcasts(0), [0x61], "one broadcast of the two");
            assert_eq!(hypervisor.taken(0), [0x61, 0x61]);

            hypervisor.leave(0);
            let _ = hypervisor.post(0, 0x61, Trigger::Edge);
            let before = hypervisor.exits(0);
            hypervisor.eoi(0);
            assert_eq!(hypervisor.exits(0), before, "the bit is no longer loaded");
            assert_eq!(eoi_bitmap(hypervisor), [0; 4]);
        });
    }
}

/// A vector turns level-triggered while the vCPU runs: it is staged and the vCPU made to load the bitmap first. Once loaded
/// it costs no such exit.
#[test]
fn eoi_bitmap_stale_on_running_vcpu() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.prompt = false;
        assert!(hypervisor.enter(0));
        let receipt = hypervisor.slot(0).request(0x91, Trigger::Level);
        assert_eq!(receipt.notify, Notify::Kick, "the vCPU has to load the bitmap");
        assert!(
            !hypervisor.storage().descriptor(0).has_posts(),
            "the processor cannot reach it yet"
        );
        assert_eq!(hypervisor.taken(0), [0; 0]);
        hypervisor.notify(0, receipt.notify);
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
        hypervisor.eoi(0);
        assert_eq!(hypervisor.broadcasts(0), [0x91]);

        hypervisor.settle();
        let receipt = hypervisor.slot(0).request(0x91, Trigger::Level);
        assert!(matches!(receipt.notify, Notify::Interrupt { .. }), "{:?}", receipt.notify);

        // A route announced ahead of time saves even the first exit.
        hypervisor.slot(0).inbox().set_level_route(vector(0xa1), true);
        hypervisor.notify(0, Notify::Kick);
        hypervisor.settle();
        let receipt = hypervisor.slot(0).request(0xa1, Trigger::Level);
        assert!(matches!(receipt.notify, Notify::Interrupt { .. }), "{:?}", receipt.notify);
    });
}

/// A bit that nobody needs any more is dropped at the next entry, and from then on the vector is staged again.
#[test]
fn dropped_route_is_staged_again() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        let posting = hypervisor.slot(0).inbox();
        for (routed, loaded) in [(true, 1u64 << 33), (false, 0)] {
            posting.set_level_route(vector(0xa1), routed);
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            assert_eq!(eoi_bitmap(hypervisor), [0, 0, loaded, 0]);
        }
        let receipt = hypervisor.slot(0).request(0xa1, Trigger::Level);
        assert_eq!(receipt.notify, Notify::Kick);
        assert!(!hypervisor.storage().descriptor(0).has_posts());
    });
}

/// An EOI that the hypervisor makes itself (a hypercall): the next entry has SVI from what is left in ISR.
#[test]
fn synthetic_eoi_updates_svi() {
    for level in LEVELS {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.post(0, 0x51, Trigger::Edge);
            let _ = hypervisor.post(0, 0x81, Trigger::Edge);
            assert_eq!(status(hypervisor), (0, 0x81));
            hypervisor.leave(0);
            let effect = hypervisor.vcpu_mut(0).driver.apic_mut().end_of_interrupt();
            assert_eq!(effect, Effect::None);
            assert!(hypervisor.enter(0));
            assert_eq!(status(hypervisor), (0, 0x51));
            let _ = hypervisor.post(0, 0x71, Trigger::Edge);
            assert_eq!(
                hypervisor.taken(0),
                [0x51, 0x81, 0x71],
                "the class in between is free again"
            );
            hypervisor.eoi(0);
            hypervisor.eoi(0);
            assert_eq!(status(hypervisor), (0, 0));
        });
    }
}

/// A page that comes from elsewhere with interrupts requested and in service: RVI, SVI and the EOI-exit bitmap follow it.
#[test]
fn svi_on_restore() {
    for level in LEVELS {
        run_enabled(Config::new(level), |hypervisor| {
            hypervisor.leave(0);
            let page = hypervisor.slot(0).page();
            for raw in [0x31, 0x92] {
                page.isr().insert(vector(raw));
            }
            page.irr().insert(vector(0x45));
            for raw in [0x31, 0x45] {
                page.tmr().insert(vector(raw));
            }
            assert!(hypervisor.enter(0));
            assert_eq!(status(hypervisor), (0x45, 0x92));
            assert_eq!(eoi_bitmap(hypervisor), [1 << 0x31, 1 << (0x45 - 64), 0, 0]);
            hypervisor.eoi(0);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x45]);
            hypervisor.eoi(0);
            hypervisor.eoi(0);
            assert_eq!(hypervisor.broadcasts(0), [0x45, 0x31]);
            assert!(page.isr().is_empty());
        });
    }
}

/// What waits in PIR is in IRR once the vCPU was made ready to be looked at, also without ON while SN is set.
#[test]
fn pir_merged_on_save() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.unload(0);
        let slot = hypervisor.slot(0);
        slot.inbox().preempt();
        let _ = slot.request(0x91, Trigger::Edge);
        // VT-d under SN: PIR without ON.
        let words = hypervisor.storage().descriptor(0).words();
        words[1].fetch_or(1 << 5, std::sync::atomic::Ordering::SeqCst);
        words[4].fetch_and(!1, std::sync::atomic::Ordering::SeqCst);
        let now = hypervisor.now();
        let _ = hypervisor.vcpu_mut(0).driver.apic_mut().prepare(now);
        let irr: Vec<_> = slot.page().irr().iter().map(Vector::get).collect();
        assert_eq!(irr, [0x91, 0x45]);
        assert!(!hypervisor.storage().descriptor(0).has_posts());
    });
}

/// A hypervisor that has to see the EOI of an edge (a periodic tick) asks for its bit; the exit names the vector.
#[test]
fn periodic_timer_needs_eoi_exit() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.slot(0).inbox().set_level_route(vector(0x44), true);
        hypervisor.notify(0, Notify::Kick);
        let _ = hypervisor.post(0, 0x44, Trigger::Edge);
        hypervisor.eoi(0);
        let exit = hypervisor.vcpu(0).last_exit.unwrap();
        assert_eq!((exit.reason, exit.qualification), (ExitReason::VirtualizedEoi, 0x44));
        assert_eq!(hypervisor.broadcasts(0), [0; 0], "an edge is not broadcast all the same");
    });
}

/// One EOI, one broadcast, though the next request of the vector is there before the EOI.
#[test]
fn level_requested_again_before_its_eoi() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.post(0, 0x61, Trigger::Level);
            let _ = hypervisor.post(0, 0x61, Trigger::Level);
            hypervisor.eoi(0);
            assert_eq!(
                (hypervisor.taken(0), hypervisor.broadcasts(0)),
                (&[0x61, 0x61][..], &[0x61][..])
            );
            hypervisor.eoi(0);
            assert_eq!(hypervisor.broadcasts(0), [0x61, 0x61]);
        });
    }
}

/// The timer's interrupt is not the highest in IRR: the higher one is taken first, and neither is lost.
#[test]
fn pt_vector_vs_highest_irr() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.write(0, Register::Lvt(LvtEntry::Timer), 0x31);
            let _ = hypervisor.write(0, Register::Tpr, 0xf0);
            let _ = hypervisor.write(0, Register::InitialCount, 100);
            let _ = hypervisor.post(0, 0x92, Trigger::Edge);
            // Divided by 2 after RESET.
            hypervisor.advance(200);
            assert_eq!(hypervisor.taken(0), [0; 0]);
            let _ = hypervisor.write(0, Register::Tpr, 0);
            assert_eq!(hypervisor.taken(0), [0x92]);
            hypervisor.eoi(0);
            assert_eq!(hypervisor.taken(0), [0x92, 0x31]);
        });
    }
}

/// LINT0, level-triggered, waits for its EOI although an edge of the same vector has cleared TMR in between.
#[test]
fn level_pin_and_edge_share_a_vector() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.write(0, Register::Lvt(LvtEntry::Lint0), 0x8061);
            let slot = hypervisor.slot(0);
            let notify = slot.set_lint(vlapic_core::Pin::Lint0, true);
            hypervisor.notify(0, notify);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x61]);
            let notify = slot.set_lint(vlapic_core::Pin::Lint0, false);
            hypervisor.notify(0, notify);
            let _ = hypervisor.post(0, 0x61, Trigger::Edge);
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            hypervisor.eoi(0);
            hypervisor.eoi(0);
            let notify = slot.set_lint(vlapic_core::Pin::Lint0, true);
            hypervisor.notify(0, notify);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x61, 0x61, 0x61], "at {level:?}");
        });
    }
}

/// A level of help is changed while interrupts are requested and in service: the page carries over, and nothing that the
/// old level left in the VMCS hinders the new one.
#[test]
fn level_of_help_changes_under_way() {
    for (from, to) in Level::ALL.iter().flat_map(|from| Level::ALL.map(|to| (*from, to))) {
        run_enabled(Config::new(from), |hypervisor| {
            let _ = hypervisor.post(0, 0x51, Trigger::Level);
            let flag = |on| vlapic_tests::hypervisor::Op::SetInterruptFlag(on);
            let _ = hypervisor.execute(0, flag(false));
            let _ = hypervisor.post(0, 0x71, Trigger::Level);
            let _ = hypervisor.post(0, 0x62, Trigger::Edge);
            hypervisor.configure(0, to.wanted());
            let _ = hypervisor.execute(0, flag(true));
            assert_eq!(hypervisor.taken(0), [0x51, 0x71], "from {from:?} to {to:?}");
            hypervisor.eoi(0);
            hypervisor.eoi(0);
            hypervisor.eoi(0);
            assert_eq!(hypervisor.taken(0), [0x51, 0x71, 0x62], "from {from:?} to {to:?}");
            assert_eq!(hypervisor.broadcasts(0), [0x71, 0x51], "from {from:?} to {to:?}");
        });
    }
}

/// An entry for which nothing changed costs one VMREAD.
#[test]
fn entry_without_news() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.with_driver(0, |driver, core, input| {
            let _ = driver.before_entry(core, input).unwrap();
            let mut vmcs = Count::new(core);
            let _ = driver.before_entry(&mut vmcs, input).unwrap();
            let counts = vmcs.counts();
            assert_eq!((counts.vmcs_reads.total(), counts.vmcs_writes.total()), (1, 0));
        });
    });
}
