//! Named scenarios of posted interrupts, with the driver on the model.

use std::sync::atomic::Ordering::SeqCst;

use apicv::irte::{Common, Posted};
use apicv::{HostMode, Posting};
use vlapic_core::{
    Delivery, Destination, LvtEntry, Message, Mode, Notify, Register, Trigger, Vector,
};
use vlapic_hal::PhysAddr;
use vlapic_tests::hypervisor::{
    Config, Hypervisor, Level, NOTIFICATION, Op, Run, Storage, WAKEUP, run,
};
use vlapic_tests::model::{Iommu, Point};

fn enabled<R>(config: Config, test: impl FnOnce(&mut Hypervisor<'_>) -> R) -> R {
    run(config, |hypervisor| {
        for index in 0..config.vcpus {
            let _ = hypervisor.write(index, Register::Svr, 0x1ff);
        }
        test(hypervisor)
    })
}

/// A device interrupt through VT-d, in posted format, and what comes of it.
fn device(hypervisor: &mut Hypervisor<'_>, index: usize, vector: u8, urgent: bool) {
    device_posts(hypervisor, index, vector, urgent);
    hypervisor.settle();
}

fn device_posts(hypervisor: &mut Hypervisor<'_>, index: usize, vector: u8, urgent: bool) {
    let descriptor = PhysAddr::new(Storage::descriptor_address(index));
    let entry = Posted { descriptor, vector, urgent, common: Common::default() }.encode().unwrap();
    let extended = hypervisor.config().host == HostMode::X2Apic;
    let memory = hypervisor.machine.memory().clone();
    let iommu = Iommu::new(memory, hypervisor.machine.bus().clone(), extended);
    iommu.interrupt(entry.halves()).unwrap();
}

fn halt(hypervisor: &mut Hypervisor<'_>, index: usize) {
    let _ = hypervisor.execute(index, Op::Halt);
}

fn request(hypervisor: &mut Hypervisor<'_>, index: usize, vector: u8) -> Notify {
    hypervisor.slot(index).request(vector, Trigger::Edge).notify
}

#[test]
fn pir_sync_always_before_entry() {
    enabled(Config::new(Level::Posted), |hypervisor| {
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
    enabled(Config::new(Level::Posted).vcpus(3), |hypervisor| {
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
    enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.unload(0);
        hypervisor.slot(0).inbox().preempt();
        device(hypervisor, 0, 0x91, false);
        let control = hypervisor.storage().descriptor(0).control();
        assert!(!control.on() && control.sn(), "VT-d was silent");
        assert!(hypervisor.machine.bus().is_empty());
        hypervisor.load(0, 0);
        hypervisor.settle();
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
    // And where SN is cleared by going to sleep.
    enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.slot(0).inbox().preempt();
        device(hypervisor, 0, 0x91, false);
        halt(hypervisor, 0);
        assert_eq!(hypervisor.taken(0), [0x91]);
    });
}

/// SN is set and the vCPU runs on: an urgent post notifies all the same, a plain one waits for the next entry.
#[test]
fn urgent_posts_pass_sn() {
    enabled(Config::new(Level::Posted), |hypervisor| {
        hypervisor.slot(0).inbox().preempt();
        device(hypervisor, 0, 0x91, false);
        assert_eq!(hypervisor.taken(0), [0; 0]);
        device(hypervisor, 0, 0xa1, true);
        assert_eq!(hypervisor.taken(0), [0xa1]);
        hypervisor.eoi(0);
        assert_eq!(hypervisor.taken(0), [0xa1, 0x91], "PIR is taken as a whole");
    });
}

/// A sleeping vCPU is woken on the CPU on whose list it stands, and by nobody else's entry work.
#[test]
fn ndst_rewritten_while_blocked() {
    for host in [HostMode::XApic, HostMode::X2Apic] {
        let config = Config { host, cpus: 4, ..Config::new(Level::Posted).vcpus(2) };
        enabled(config, |hypervisor| {
            halt(hypervisor, 1);
            assert_eq!(hypervisor.vcpu(1).run, Run::Blocked { cpu: 1 });
            // Its VMCS goes to another CPU, as a scheduler may choose early; the list does not change.
            hypervisor.unload(1);
            hypervisor.load(1, 3);
            let control = hypervisor.storage().descriptor(1).control();
            let ndst = if host == HostMode::XApic { 1 << 8 } else { 1 };
            assert_eq!((control.nv(), control.ndst(), control.sn()), (WAKEUP, ndst, false));
            device(hypervisor, 1, 0x91, false);
            assert_eq!(hypervisor.taken(1), [0x91]);
            let control = hypervisor.storage().descriptor(1).control();
            assert_eq!((control.nv(), control.ndst()), (NOTIFICATION, 3 * ndst));
        });
    }
}

/// A post with the wakeup vector falls between the decision to run and the entry.
#[test]
fn nv_wakeup_in_entry_window() {
    for by_device in [false, true] {
        enabled(Config::new(Level::Posted), |hypervisor| {
            halt(hypervisor, 0);
            hypervisor.prompt = false;
            // Somebody wakes it for another reason; on its way back the post comes, still with NV for sleepers.
            hypervisor.notify(0, Notify::Kick);
            if by_device {
                device_posts(hypervisor, 0, 0x91, false);
            } else {
                assert_eq!(request(hypervisor, 0, 0x91), Notify::Wake);
            }
            hypervisor.vcpu_mut(0).run = Run::Ready;
            assert!(hypervisor.enter(0));
            assert_eq!(
                hypervisor.core(0).interrupt_status(),
                Some((0x91, 0)),
                "seen by this entry"
            );
            let control = hypervisor.storage().descriptor(0).control();
            assert_eq!((control.nv(), control.sn()), (NOTIFICATION, false), "later posts notify");
            hypervisor.prompt = true;
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "the wakeup that comes late does no harm");
        });
    }
}

/// Whatever state a scheduler's hooks left behind, an entry sets SN, NV and NDST as for running.
#[test]
fn deassign_leaves_sn() {
    enabled(Config::new(Level::Posted), |hypervisor| {
        let posting = hypervisor.slot(0).inbox();
        for state in [Posting::preempt, Posting::offline] {
            state(posting);
            hypervisor.leave(0);
            hypervisor.settle();
            assert!(!hypervisor.storage().descriptor(0).control().sn());
            let before = hypervisor.taken(0).len();
            device(hypervisor, 0, 0x91, false);
            assert_eq!(hypervisor.taken(0).len(), before + 1);
            hypervisor.eoi(0);
        }
    });
}

#[test]
fn pcpu_offline_with_blocked_vcpus() {
    enabled(Config { cpus: 4, ..Config::new(Level::Posted).vcpus(2) }, |hypervisor| {
        halt(hypervisor, 1);
        hypervisor.prompt = false;
        // The wakeup goes to CPU 1 and never arrives there.
        device(hypervisor, 1, 0x91, false);
        assert!(hypervisor.machine.bus().take().is_some());
        hypervisor.unload(1);
        hypervisor.load(1, 2);
        hypervisor.move_sleeper(1, 2);
        hypervisor.settle();
        assert_eq!(hypervisor.taken(1), [0x91], "ON is looked at as the list moves");
        hypervisor.eoi(1);

        hypervisor.prompt = true;
        halt(hypervisor, 1);
        hypervisor.move_sleeper(1, 3);
        assert_eq!(hypervisor.vcpu(1).run, Run::Blocked { cpu: 3 });
        device(hypervisor, 1, 0xa1, false);
        assert_eq!(hypervisor.taken(1), [0x91, 0xa1]);
    });
}

/// A list is moved while one of its vCPUs has started to run: it keeps what it runs with.
#[test]
fn list_moves_under_a_vcpu_that_runs() {
    enabled(Config::new(Level::Posted), |hypervisor| {
        assert!(hypervisor.enter(0));
        let before = hypervisor.storage().descriptor(0).control();
        assert!(!hypervisor.slot(0).inbox().move_blocked(3));
        assert_eq!(hypervisor.storage().descriptor(0).control(), before);
    });
}

/// ON without a post wakes nobody for good and is no interrupt.
#[test]
fn on_set_empty_pir() {
    for level in [Level::VirtualInterruptDelivery, Level::Posted] {
        enabled(Config::new(level), |hypervisor| {
            halt(hypervisor, 0);
            hypervisor.storage().descriptor(0).words()[4].fetch_or(1, SeqCst);
            assert!(hypervisor.slot(0).inbox().wants_waking());
            hypervisor.notify(0, Notify::Wake);
            hypervisor.settle();
            assert_eq!(hypervisor.vcpu(0).run, Run::Blocked { cpu: 0 }, "asleep again");
            assert!(!hypervisor.slot(0).inbox().wants_waking(), "and nothing keeps waking it");
            assert_eq!(hypervisor.taken(0), [0; 0]);
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0x91]);
        });
    }
}

#[test]
fn hlt_wake_uses_ppr() {
    for level in Level::ALL {
        enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.write(0, Register::Tpr, 0x80);
            halt(hypervisor, 0);
            let _ = hypervisor.post(0, 0x71, Trigger::Edge);
            assert_eq!(hypervisor.vcpu(0).run, Run::Blocked { cpu: 0 }, "below TPR, at {level:?}");
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0x91], "at {level:?}");
            assert_eq!(hypervisor.vcpu(0).run, Run::Ready);
        });
    }
}

/// With RFLAGS.IF clear no interrupt ends HLT; an NMI does.
#[test]
fn hlt_with_if_clear() {
    for level in Level::ALL {
        enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.execute(0, Op::SetInterruptFlag(false));
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            halt(hypervisor, 0);
            let _ = hypervisor.post(0, 0xa1, Trigger::Edge);
            assert_eq!(hypervisor.vcpu(0).run, Run::Blocked { cpu: 0 }, "at {level:?}");
            hypervisor.send(&Message { delivery: Delivery::Nmi, destination: Destination::All });
            assert_eq!(hypervisor.vcpu(0).run, Run::Ready, "at {level:?}");
            let _ = hypervisor.execute(0, Op::SetInterruptFlag(true));
            assert_eq!(hypervisor.taken(0), [0xa1]);
        });
    }
}

/// A vector below TPR has set ON; one that can be taken still gets through, asleep or running.
#[test]
fn priority_upgrade_notification() {
    for asleep in [false, true] {
        enabled(Config::new(Level::Posted), |hypervisor| {
            let _ = hypervisor.write(0, Register::Tpr, 0x80);
            if asleep {
                halt(hypervisor, 0);
            }
            hypervisor.prompt = false;
            // The first notification is still on its way when the second vector is posted.
            let first = request(hypervisor, 0, 0x71);
            assert_ne!(first, Notify::None);
            assert_eq!(request(hypervisor, 0, 0x91), Notify::None, "covered by the first");
            hypervisor.prompt = true;
            hypervisor.notify(0, first);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91]);
        });
        enabled(Config::new(Level::Posted), |hypervisor| {
            let _ = hypervisor.write(0, Register::Tpr, 0x80);
            if asleep {
                halt(hypervisor, 0);
            }
            // The first has been dealt with, and is still held back by TPR.
            let _ = hypervisor.post(0, 0x71, Trigger::Edge);
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0x91]);
        });
    }
}

/// The notification reaches the CPU while the hypervisor runs there, and is gone.
#[test]
fn self_nv_ipi_in_root_mode() {
    enabled(Config::new(Level::Posted), |hypervisor| {
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
    enabled(Config::new(Level::Posted), |hypervisor| {
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
        enabled(Config::new(level), |hypervisor| {
            device(hypervisor, 0, 0x91, false);
            assert!(hypervisor.machine.bus().is_empty());
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "at the next entry, at {level:?}");
            hypervisor.eoi(0);
            device(hypervisor, 0, 0x92, true);
            assert_eq!(hypervisor.taken(0), [0x91, 0x92], "an urgent one at once");
            hypervisor.eoi(0);
            halt(hypervisor, 0);
            device(hypervisor, 0, 0xa1, false);
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
            enabled(Config::new(Level::Posted), |hypervisor| {
                let (slot, bus) = (hypervisor.slot(0), hypervisor.machine.bus().clone());
                hypervisor.leave(0);
                let mut done = false;
                hypervisor.core(0).interleave(move |reached| {
                    if reached == point && !std::mem::replace(&mut done, true) {
                        let notify = slot.request(vector, Trigger::Edge).notify;
                        if let Notify::Interrupt { vector, destination } = notify {
                            bus.send(vlapic_tests::model::PhysicalInterrupt {
                                destination,
                                vector,
                            });
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
        enabled(Config::new(Level::Posted).mode(mode), |hypervisor| {
            let _ = hypervisor.write(0, Register::Svr, 0xff);
            device(hypervisor, 0, 0x91, false);
            assert_eq!(hypervisor.taken(0), [0x91], "the processor does not ask SVR");
            hypervisor.eoi(0);

            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, 0xfee0_0100));
            device(hypervisor, 0, 0xa1, false);
            device(hypervisor, 0, 0xb1, true);
            hypervisor.notify(0, Notify::Kick);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "no APIC, no interrupt");
            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, 0xfee0_0900));
            let _ = hypervisor.write(0, Register::Svr, 0x1ff);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x91], "nor later");
            assert!(hypervisor.slot(0).page().irr().is_empty());
            device(hypervisor, 0, 0xc1, false);
            assert_eq!(hypervisor.taken(0), [0x91, 0xc1]);
        });
    }
}

/// The timer fires while the vCPU sleeps, and while it is preempted.
#[test]
fn timer_of_a_vcpu_that_does_not_run() {
    for level in Level::ALL {
        enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.write(0, Register::Lvt(LvtEntry::Timer), 0x31);
            let _ = hypervisor.write(0, Register::InitialCount, 100);
            halt(hypervisor, 0);
            hypervisor.advance(200);
            assert_eq!(hypervisor.taken(0), [0x31], "at {level:?}");
            hypervisor.eoi(0);
            let _ = hypervisor.write(0, Register::InitialCount, 100);
            hypervisor.unload(0);
            hypervisor.slot(0).inbox().preempt();
            hypervisor.advance(500);
            assert_eq!(hypervisor.taken(0), [0x31]);
            hypervisor.load(0, 0);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(0), [0x31, 0x31], "at {level:?}");
        });
    }
}
