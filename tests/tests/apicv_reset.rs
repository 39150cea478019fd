//! INIT and RESET with the driver on the model: nothing of the old life is left in page, descriptor or VMCS.

use vlapic_core::{ApicPage, Event, Mode, Notify, Register, Trigger, Vector};
use vlapic_tests::hypervisor::{Answer, Config, Hypervisor, Level, Op, Run, run_enabled};
use vlapic_tests::model::field;

const DELIVERY: [Level; 3] =
    [Level::VirtualInterruptDelivery, Level::Posted, Level::IpiVirtualization];

/// vCPU 0 sends INIT and a start-up IPI to vCPU 1.
fn restart(hypervisor: &mut Hypervisor<'_>) {
    for command in [0x4500, 0x4608] {
        let answer = match hypervisor.slot(0).mode() {
            Mode::X2Apic => hypervisor.write(0, Register::IcrLow, command | 1 << 32),
            _ => {
                let _ = hypervisor.write(0, Register::IcrHigh, 1 << 24);
                hypervisor.write(0, Register::IcrLow, command)
            }
        };
        assert_eq!(answer, Answer::Done);
    }
}

fn nothing_waits(page: &ApicPage) -> bool {
    page.irr().is_empty() && page.isr().is_empty() && page.tmr().is_empty()
}

/// A vector waits in PIR, another is staged, when INIT comes.
#[test]
fn pir_survives_init() {
    for level in Level::ALL {
        for mode in [Mode::XApic, Mode::X2Apic] {
            run_enabled(Config::new(level).vcpus(2).mode(mode), |hypervisor| {
                hypervisor.unload(1);
                let slot = hypervisor.slot(1);
                let _ = slot.request(0x91, Trigger::Edge);
                let _ = slot.request(0xa1, Trigger::Level);
                hypervisor.device_posts(1, 0xb1, false);
                restart(hypervisor);
                hypervisor.load(1, 1);
                hypervisor.settle();
                assert_eq!(hypervisor.vcpu(1).run, Run::Ready, "at {level:?}");
                let descriptor = hypervisor.storage().descriptor(1);
                assert!(!descriptor.has_posts() && !descriptor.control().on());
                assert!(nothing_waits(slot.page()), "at {level:?}");
                let _ = hypervisor.write(1, Register::Svr, 0x1ff);
                assert_eq!(hypervisor.taken(1), [0; 0], "at {level:?}");
                let _ = hypervisor.post(1, 0xa1, Trigger::Level);
                hypervisor.eoi(1);
                assert_eq!(
                    (hypervisor.taken(1), hypervisor.broadcasts(1)),
                    (&[0xa1][..], &[0xa1][..])
                );
            });
        }
    }
}

/// A vector is in service and another requested, with RVI and SVI to match, when INIT comes.
#[test]
fn rvi_svi_survive_init() {
    for level in DELIVERY {
        run_enabled(Config::new(level).vcpus(2), |hypervisor| {
            let _ = hypervisor.post(1, 0xe1, Trigger::Level);
            let _ = hypervisor.post(1, 0x91, Trigger::Level);
            assert_eq!(hypervisor.core(1).interrupt_status(), Some((0x91, 0xe1)));
            restart(hypervisor);
            assert_eq!(hypervisor.core(1).interrupt_status(), Some((0, 0)), "at {level:?}");
            let region = hypervisor.core(1).vmcs().unwrap();
            let bitmap = field::EOI_EXIT_BITMAP.map(|encoding| region.get(encoding));
            assert_eq!(bitmap, [0; 4], "no EOI exits for vectors of the old life");
            assert_eq!(
                hypervisor.vcpu(1).events,
                [Event::Init { waits: true }, Event::Startup { page: 8 }]
            );
            hypervisor.vcpu_mut(1).forget_taken();
            let _ = hypervisor.write(1, Register::Svr, 0x1ff);
            let _ = hypervisor.post(1, 0x21, Trigger::Edge);
            assert_eq!(hypervisor.taken(1), [0x21], "the lowest class is free");
        });
    }
}

/// INIT reaches a vCPU that sleeps.
#[test]
fn init_of_a_sleeping_vcpu() {
    for level in Level::ALL {
        run_enabled(Config::new(level).vcpus(2), |hypervisor| {
            let _ = hypervisor.execute(1, Op::Halt);
            assert_eq!(hypervisor.vcpu(1).run, Run::Blocked { cpu: 1 });
            restart(hypervisor);
            assert_eq!(hypervisor.vcpu(1).run, Run::Ready, "at {level:?}");
            let _ = hypervisor.write(1, Register::Svr, 0x1ff);
            let _ = hypervisor.post(1, 0x91, Trigger::Edge);
            assert_eq!(hypervisor.taken(1), [0x91]);
        });
    }
}

/// RESET brings x2APIC mode back to xAPIC mode, controls and MSR bitmap with it.
#[test]
fn reset_from_x2apic_mode() {
    for level in Level::ALL {
        run_enabled(Config::new(level).mode(Mode::X2Apic), |hypervisor| {
            let _ = hypervisor.post(0, 0xe1, Trigger::Level);
            let _ = hypervisor.post(0, 0x91, Trigger::Edge);
            hypervisor.reset(0);
            let slot = hypervisor.slot(0);
            assert_eq!(slot.mode(), Mode::XApic);
            assert!(nothing_waits(slot.page()));
            assert_eq!(hypervisor.execute(0, Op::Rdmsr(0x808)), Answer::GeneralProtection);
            assert_eq!(hypervisor.read(0, Register::Svr), 0xff, "through the window, at {level:?}");
            hypervisor.vcpu_mut(0).forget_taken();
            let _ = hypervisor.write(0, Register::Svr, 0x1ff);
            let _ = hypervisor.post(0, 0x21, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0x21]);
        });
    }
}

/// A debt of upcalls survives INIT, what was posted for it does not: one upcall in the new life.
#[test]
fn pending_byte_survives_init() {
    for level in Level::ALL {
        run_enabled(Config::new(level).vcpus(2), |hypervisor| {
            hypervisor.register_upcall(1, 0xf3);
            hypervisor.unload(1);
            hypervisor.notify_upcall(1);
            restart(hypervisor);
            hypervisor.load(1, 1);
            hypervisor.settle();
            assert!(hypervisor.slot(1).page().irr().is_empty(), "at {level:?}");
            assert_eq!(hypervisor.taken(1), [0; 0]);
            let _ = hypervisor.write(1, Register::Svr, 0x1ff);
            assert_eq!(hypervisor.taken(1), [0xf3], "at {level:?}");
            hypervisor.eoi(1);
            let _ = hypervisor.write(1, Register::Svr, 0x1fe);
            hypervisor.notify(1, Notify::Kick);
            hypervisor.settle();
            assert_eq!(hypervisor.taken(1), [0xf3]);
        });
    }
}

/// IA32_APIC_BASE.EN cleared and set again: interrupts in flight and in service are gone, at every level.
#[test]
fn disabled_and_enabled_again() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.post(0, 0xe1, Trigger::Level);
            let _ = hypervisor.post(0, 0x91, Trigger::Level);
            let base = hypervisor.slot(0).base().bits();
            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, base & !0x800));
            let receipt = hypervisor.post(0, 0xa1, Trigger::Edge);
            assert_eq!(receipt.outcome, vlapic_core::Outcome::Refused);
            assert_eq!(hypervisor.execute(0, Op::ReadCr8), Answer::Value(0), "CR8 goes on working");
            let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, base));
            assert!(nothing_waits(hypervisor.slot(0).page()));
            let _ = hypervisor.write(0, Register::Svr, 0x1ff);
            let _ = hypervisor.post(0, 0x21, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0xe1, 0x21], "at {level:?}");
            assert_eq!(hypervisor.slot(0).page().isr().highest(), Vector::new(0x21));
        });
    }
}
