//! Named scenarios of posted interrupts, with the driver on the model.

use apicv::Posting;
use vlapic_core::{Delivery, Mode, Next, Notify, Register, Trigger, Vector};
use vlapic_tests::hypervisor::{Config, Hypervisor, Level, NOTIFICATION, Op, run_enabled};
use vlapic_tests::model::{PhysicalInterrupt, Point};

fn halt(hypervisor: &mut Hypervisor<'_>, index: usize) {
    let _ = hypervisor.execute(index, Op::Halt);
}

fn request(hypervisor: &mut Hypervisor<'_>, index: usize, vector: u8) -> Notify {
    hypervisor.slot(index).request(vector, Trigger::Edge).notify
}

#[test]
fn pir_sync_always_before_entry() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.leave(0);
        hypervisor.prompt = false;
        let _ = request(hypervisor, 0, 0x91);
        let nmi = hypervisor.slot(0).receive(Delivery::Nmi);
        hypervisor.notify(0, nmi.notify);
        assert!(hypervisor.enter(0));
        let irr = hypervisor.slot(0).page().irr().highest().map(Vector::get);
        assert_eq!(irr, Some(0x91), "an event that is injected does not keep posts waiting");
        assert_eq!(hypervisor.core(0).interrupt_status(), Some((0x91, 0)));
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
        assert_eq!(hypervisor.vcpu(0).events.len(), 1);
    });
}

/// Whether a notification is sent is decided by the descriptor alone, each time it has been drained anew.
#[test]
fn ipi_suppressed_by_stale_softirq_bit() {
    run_enabled(Config::new(Level::Posted).vcpus(3), |hypervisor| {
        hypervisor.prompt = false;
        for round in 0..3u8 {
            for target in 0..3 {
                let notify = request(hypervisor, target, 0x90 + round);
                let destination = target as u32;
                assert_eq!(notify, Notify::Interrupt { vector: NOTIFICATION, destination });
                assert_eq!(request(hypervisor, target, 0x30), Notify::None, "one is outstanding");
                hypervisor.notify(target, notify);
                while hypervisor.arrive() {}
                hypervisor.settle();
                hypervisor.eoi(target);
                hypervisor.eoi(target);
                assert_eq!(
                    hypervisor.taken(target)[2 * usize::from(round)..],
                    [0x90 + round, 0x30]
                );
            }
        }
    });
}

#[test]
fn sn_clear_must_resync() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.unload(0);
        hypervisor.slot(0).inbox().preempt();
        hypervisor.device_interrupt(0, 0x91, false);
        let control = hypervisor.storage().descriptor(0).control();
        assert!(!control.on() && control.sn(), "VT-d was silent");
        assert!(hypervisor.machine.bus().is_empty());
        hypervisor.load(0, 0);
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
    // And where SN is cleared by going to sleep.
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.slot(0).inbox().preempt();
        hypervisor.device_interrupt(0, 0x91, false);
        halt(hypervisor, 0);
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
}

/// SN is set and the vCPU runs on: an urgent post notifies all the same, a plain one waits for the next entry.
#[test]
fn urgent_posts_pass_sn() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.slot(0).inbox().preempt();
        hypervisor.device_interrupt(0, 0x91, false);
        assert_eq!(hypervisor.taken(0), [0; 0]);
        hypervisor.device_interrupt(0, 0xa1, true);
        assert_eq!(hypervisor.taken(0), [0xa1]);
        hypervisor.eoi(0);
        assert_eq!(hypervisor.taken(0), [0xa1, 0x91], "PIR is taken as a whole");
    });
}

/// Whatever state a scheduler's hooks left behind, an entry sets SN, NV and NDST as for running.
#[test]
fn deassign_leaves_sn() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        let posting = hypervisor.slot(0).inbox();
        for state in [Posting::preempt, Posting::offline] {
            state(posting);
            hypervisor.leave(0);
            hypervisor.settle();
            assert!(!hypervisor.storage().descriptor(0).control().sn());
            let before = hypervisor.taken(0).len();
            hypervisor.device_interrupt(0, 0x91, false);
            assert_eq!(hypervisor.taken(0).len(), before + 1);
            hypervisor.eoi(0);
        }
    });
}

/// The notification reaches the CPU while the hypervisor runs there, and is gone.
#[test]
fn self_nv_ipi_in_root_mode() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.leave(0);
        let notify = request(hypervisor, 0, 0x91);
        assert_eq!(notify, Notify::Interrupt { vector: NOTIFICATION, destination: 0 });
        hypervisor.notify(0, notify);
        assert!(hypervisor.machine.bus().is_empty() && !hypervisor.core(0).in_guest());
        assert_eq!(hypervisor.core(0).physical.pending(), None, "taken by the host");
        assert!(hypervisor.enter(0));
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
}

/// Between the driver's last look and the entry: the notification waits at the CPU and is processed in guest mode.
#[test]
fn post_after_the_last_look() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
        let notify = hypervisor.with_driver(0, |driver, core, input| {
            let _ = driver.before_entry(core, input).unwrap();
            driver.apic().slot().request(0x91, Trigger::Edge).notify
        });
        assert_eq!(notify, Notify::Interrupt { vector: NOTIFICATION, destination: 0 });
        hypervisor.core(0).raise(NOTIFICATION);
        let _ = hypervisor.core(0).vm_entry().unwrap();
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
}

/// VT-d posts, but the CPU side has no posted interrupts: nothing is sent with a vector that nobody has, and nothing is
/// lost.
#[test]
fn pi_without_cpu_side() {
    let levels = [Level::Emulated, Level::RegisterVirtualization, Level::VirtualInterruptDelivery];
    for level in levels {
        run_enabled(Config::new(level), |hypervisor| {
            hypervisor.device_interrupt(0, 0x91, false);
            assert!(hypervisor.machine.bus().is_empty());
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "at the next entry, at {level:?}");
            hypervisor.eoi(0);
            hypervisor.device_interrupt(0, 0x92, true);
            assert_eq!(hypervisor.taken(0), [0x91, 0x92], "an urgent one at once");
            hypervisor.eoi(0);
            halt(hypervisor, 0);
            hypervisor.device_interrupt(0, 0xa1, false);
            assert_eq!(hypervisor.taken(0), [0x91, 0x92, 0xa1], "asleep the wakeup vector tells");
        });
    }
}

/// A post at every place inside posted-interrupt processing where another CPU could act.
#[test]
fn posts_during_posted_interrupt_processing() {
    let points = [
        Point::BeforeOnIsCleared,
        Point::AfterOnIsCleared,
        Point::PirGroupTaken(0),
        Point::PirGroupTaken(1),
        Point::PirGroupTaken(3),
        Point::BeforeEvaluation,
    ];
    for point in points {
        for vector in [0x35, 0x75, 0xb5, 0xf5] {
            run_enabled(Config::new(Level::Posted), |hypervisor| {
                let (slot, bus) = (hypervisor.slot(0), hypervisor.machine.bus().clone());
                hypervisor.leave(0);
                let mut done = false;
                hypervisor.core(0).interleave(move |reached| {
                    if reached == point && !std::mem::replace(&mut done, true) {
                        let notify = slot.request(vector, Trigger::Edge).notify;
                        if let Notify::Interrupt { vector, destination } = notify {
                            bus.send(PhysicalInterrupt { destination, vector });
                        }
                    }
                });
                assert!(hypervisor.enter(0));
                let _ = hypervisor.post(0, 0x22, Trigger::Edge);
                hypervisor.settle();
                for _ in 0..2 {
                    hypervisor.eoi(0);
                }
                let mut taken = hypervisor.taken(0).to_vec();
                taken.sort_unstable();
                assert_eq!(taken, [0x22, vector], "at {point:?}");
            });
        }
    }
}

/// What hardware posts to an APIC that is not there is dropped; to one that is software-disabled, kept.
#[test]
fn hardware_posts_to_disabled_apics() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        run_enabled(Config::new(Level::Posted).mode(mode), |hypervisor| {
            let _ = hypervisor.write(0, Register::Svr, 0xff);
            hypervisor.device_interrupt(0, 0x91, false);
            assert_eq!(hypervisor.taken(0), [0x91], "the processor does not ask SVR");
            hypervisor.eoi(0);

            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, 0xfee0_0100));
            hypervisor.device_interrupt(0, 0xa1, false);
            hypervisor.device_interrupt(0, 0xb1, true);
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "no APIC, no interrupt");
            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, 0xfee0_0900));
            let _ = hypervisor.write(0, Register::Svr, 0x1ff);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "nor later");
            assert!(hypervisor.slot(0).page().irr().is_empty());
            hypervisor.device_interrupt(0, 0xc1, false);
            assert_eq!(hypervisor.taken(0), [0x91, 0xc1]);
        });
    }
}

/// Made ready for an entry that is then not made: what was injected stays, and a higher vector that comes meanwhile waits
/// its turn.
#[test]
fn injection_without_an_entry() {
    for level in [Level::Emulated, Level::TprShadow, Level::RegisterVirtualization] {
        run_enabled(Config::new(level), |hypervisor| {
            hypervisor.leave(0);
            let _ = request(hypervisor, 0, 0x51);
            hypervisor.prepare_in_vain(0);
            assert_eq!(
                hypervisor.vcpu(0).entry.and_then(|entry| entry.injected),
                Vector::new(0x51)
            );
            let _ = request(hypervisor, 0, 0x91);
            hypervisor.prepare_in_vain(0);
            assert_eq!(hypervisor.vcpu(0).entry.and_then(|entry| entry.injected), None);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x51, 0x91], "at {level:?}");
        });
    }
}

/// An event that the hypervisor has to inject comes first; the vector stays in IRR until the next entry.
#[test]
fn injection_beside_an_event() {
    for level in [Level::Emulated, Level::TprShadow, Level::RegisterVirtualization] {
        run_enabled(Config::new(level), |hypervisor| {
            hypervisor.leave(0);
            let _ = request(hypervisor, 0, 0x51);
            let _ = hypervisor.slot(0).receive(Delivery::Nmi);
            hypervisor.prepare_in_vain(0);
            let entry = hypervisor.vcpu(0).entry;
            assert_eq!(
                entry.map(|entry| (entry.next, entry.injected)),
                Some((Next::TakeEvent, None))
            );
            assert_eq!(hypervisor.slot(0).page().irr().highest(), Vector::new(0x51));
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x51], "at {level:?}");
            assert_eq!(hypervisor.vcpu(0).events.len(), 1);
        });
    }
}
