//! Named scenarios of vCPUs that sleep, and of those that wake them, with the driver on the model.

use std::sync::atomic::Ordering::SeqCst;

use apicv::HostMode;
use vlapic_core::{Delivery, Destination, LvtEntry, Message, Notify, Register, Trigger};
use vlapic_tests::hypervisor::{
    Config, Hypervisor, Level, NOTIFICATION, Op, Run, WAKEUP, run_enabled,
};

fn halt(hypervisor: &mut Hypervisor<'_>, index: usize) {
    let _ = hypervisor.execute(index, Op::Halt);
}

fn request(hypervisor: &mut Hypervisor<'_>, index: usize, vector: u8) -> Notify {
    hypervisor.slot(index).request(vector, Trigger::Edge).notify
}

/// A sleeping vCPU is woken on the CPU on whose list it stands, and by nobody else's entry work.
#[test]
fn ndst_rewritten_while_blocked() {
    for host in [HostMode::XApic, HostMode::X2Apic] {
        let config = Config { host, cpus: 4, ..Config::new(Level::Posted).vcpus(2) };
        run_enabled(config, |hypervisor| {
            halt(hypervisor, 1);
            assert_eq!(hypervisor.vcpu(1).run, Run::Blocked { cpu: 1 });
            // Its VMCS goes to another CPU, as a scheduler may choose early; the list does not change.
            hypervisor.unload(1);
            hypervisor.load(1, 3);
            let control = hypervisor.storage().descriptor(1).control();
            let ndst = if host == HostMode::XApic { 1 << 8 } else { 1 };
            assert_eq!((control.nv(), control.ndst(), control.sn()), (WAKEUP, ndst, false));
            hypervisor.device_interrupt(1, 0x91, false);
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
        run_enabled(Config::new(Level::Posted), |hypervisor| {
            halt(hypervisor, 0);
            hypervisor.prompt = false;
            // Somebody wakes it for another reason; on its way back the post comes, still with NV for sleepers.
            hypervisor.notify(0, Notify::Kick);
            if by_device {
                hypervisor.device_posts(0, 0x91, false);
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

#[test]
fn pcpu_offline_with_blocked_vcpus() {
    run_enabled(Config { cpus: 4, ..Config::new(Level::Posted).vcpus(2) }, |hypervisor| {
        halt(hypervisor, 1);
        hypervisor.prompt = false;
        // The wakeup goes to CPU 1 and never arrives there.
        hypervisor.device_interrupt(1, 0x91, false);
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
        hypervisor.device_interrupt(1, 0xa1, false);
        assert_eq!(hypervisor.taken(1), [0x91, 0xa1]);
    });
}

/// A list is moved while one of its vCPUs has started to run: it keeps what it runs with.
#[test]
fn list_moves_under_a_vcpu_that_runs() {
    run_enabled(Config::new(Level::Posted), |hypervisor| {
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
        run_enabled(Config::new(level), |hypervisor| {
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
        run_enabled(Config::new(level), |hypervisor| {
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
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.execute(0, Op::SetInterruptFlag(false));
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            halt(hypervisor, 0);
            let _ = hypervisor.post(0, 0xa1, Trigger::Edge);
            assert_eq!(hypervisor.vcpu(0).run, Run::Blocked { cpu: 0 }, "at {level:?}");
            hypervisor.send(&Message::new(Delivery::Nmi, Destination::All));
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
        run_enabled(Config::new(Level::Posted), |hypervisor| {
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
        run_enabled(Config::new(Level::Posted), |hypervisor| {
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

/// The timer fires while the vCPU sleeps, and while it is preempted.
#[test]
fn timer_of_a_vcpu_that_does_not_run() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
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
