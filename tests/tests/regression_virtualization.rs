//! Named scenarios of controls that a hypervisor set for the wrong vCPU, the wrong mode, or at the wrong time, with the
//! driver on the model. A guest access that reaches the physical APIC fails every one of them.

use vlapic_core::{Mode, Register, Trigger, Width};
use vlapic_tests::hypervisor::{Answer, Config, Hypervisor, Level, NOTIFICATION, Op, run_enabled};
use vlapic_tests::model::{controls::primary, field};

const MODES: [Mode; 2] = [Mode::XApic, Mode::X2Apic];

const SVR: Op = Op::Load { offset: 0x0f0, width: Width::Dword };

fn waits_for_a_window(hypervisor: &mut Hypervisor<'_>) -> bool {
    let controls = hypervisor.core(0).vmcs().map_or(0, |region| region.get(field::PRIMARY));
    controls as u32 & primary::INTERRUPT_WINDOW_EXITING != 0
}

/// One vCPU goes to x2APIC mode while another runs in xAPIC mode: bitmap and controls are those of each vCPU.
#[test]
fn mode_switch_is_per_vcpu() {
    for level in Level::ALL {
        run_enabled(Config::new(level).vcpus(2), |hypervisor| {
            let base = hypervisor.slot(1).base().bits();
            assert_eq!(hypervisor.execute(1, Op::Wrmsr(0x1b, base | 0x400)), Answer::Done);
            for _ in 0..2 {
                assert_eq!(hypervisor.execute(0, SVR), Answer::Value(0x1ff), "at {level:?}");
                assert_eq!(hypervisor.execute(0, Op::Rdmsr(0x80f)), Answer::GeneralProtection);
                assert_eq!(hypervisor.execute(1, Op::Rdmsr(0x80f)), Answer::Value(0x1ff));
            }
            for index in 0..2 {
                let _ = hypervisor.post(index, 0x51, Trigger::Edge);
                assert_eq!(hypervisor.taken(index), [0x51], "at {level:?}");
                hypervisor.eoi(index);
            }
        });
    }
}

/// A shorthand in the guest's ICR means the VM's vCPUs. The physical machine sees notifications, and nothing else.
#[test]
fn passthrough_icr_shorthand() {
    for (level, mode) in Level::ALL.into_iter().flat_map(|level| MODES.map(|mode| (level, mode))) {
        for (shorthand, taken) in [(1u64, [1, 0, 0]), (2, [1, 1, 1]), (3, [0, 1, 1])] {
            run_enabled(Config::new(level).vcpus(3).mode(mode), |hypervisor| {
                hypervisor.prompt = false;
                let icr = Register::IcrLow;
                let _ = hypervisor.instruction(
                    0,
                    match mode {
                        Mode::X2Apic => Op::Wrmsr(icr.msr(), shorthand << 18 | 0x41),
                        _ => Op::Store {
                            offset: icr.offset(),
                            width: Width::Dword,
                            value: shorthand << 18 | 0x41,
                        },
                    },
                );
                let bus = hypervisor.machine.bus().clone();
                let mut sent = Vec::new();
                while let Some(interrupt) = bus.take() {
                    assert!(
                        interrupt.vector != 0x41 && interrupt.destination < 3,
                        "{interrupt:?} at {level:?}"
                    );
                    sent.push(interrupt);
                }
                for interrupt in sent {
                    bus.send(interrupt);
                }
                hypervisor.prompt = true;
                hypervisor.settle();
                let counts = [0, 1, 2].map(|index| hypervisor.taken(index).len());
                assert_eq!(counts, taken, "shorthand {shorthand} at {level:?} in {mode:?}");
            });
        }
    }
}

/// A guest lowers its TPR after an EOI has changed what waits below it: the threshold of that entry is the new one.
#[test]
fn tpr_threshold_after_eoi() {
    for (level, mode) in Level::ALL.into_iter().flat_map(|level| MODES.map(|mode| (level, mode))) {
        run_enabled(Config::new(level).mode(mode), |hypervisor| {
            let _ = hypervisor.post(0, 0x81, Trigger::Edge);
            let _ = hypervisor.write(0, Register::Tpr, 0x70);
            for vector in [0x52, 0x32] {
                let _ = hypervisor.post(0, vector, Trigger::Edge);
            }
            hypervisor.eoi(0);
            assert_eq!(hypervisor.taken(0), [0x81], "TPR holds them at {level:?}");
            let _ = hypervisor.execute(0, Op::WriteCr8(5));
            assert_eq!(hypervisor.taken(0), [0x81], "and still does at {level:?}");
            let _ = hypervisor.execute(0, Op::WriteCr8(4));
            assert_eq!(hypervisor.taken(0), [0x81, 0x52], "at {level:?} in {mode:?}");
            hypervisor.eoi(0);
            let _ = hypervisor.execute(0, Op::WriteCr8(2));
            assert_eq!(hypervisor.taken(0), [0x81, 0x52, 0x32], "at {level:?} in {mode:?}");
        });
    }
}

/// Where the processor delivers by itself no interrupt window is asked for: it would exit for nothing, and hold back
/// what waits in RVI.
#[test]
fn no_intr_window_with_vid() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            let _ = hypervisor.execute(0, Op::SetInterruptFlag(false));
            let _ = hypervisor.post(0, 0x51, Trigger::Edge);
            assert_eq!(waits_for_a_window(hypervisor), !level.delivers(), "at {level:?}");
            assert_eq!(hypervisor.taken(0), [0; 0]);
            let before = hypervisor.exits(0);
            let _ = hypervisor.execute(0, Op::SetInterruptFlag(true));
            assert_eq!(hypervisor.taken(0), [0x51], "at {level:?}");
            assert_eq!(hypervisor.exits(0) == before, level.delivers(), "exits at {level:?}");
            assert!(!waits_for_a_window(hypervisor), "nothing waits any more at {level:?}");
        });
    }
}

/// An NMI waits while interrupts are posted: it takes no part in their priorities and holds none of them back.
#[test]
fn nmi_window_with_apicv() {
    for level in Level::ALL {
        run_enabled(Config::new(level), |hypervisor| {
            hypervisor.leave(0);
            let _ = hypervisor.slot(0).receive(vlapic_core::Delivery::Nmi);
            for vector in [0x51, 0x91] {
                let notify = hypervisor.slot(0).request(vector, Trigger::Edge).notify;
                hypervisor.notify(0, notify);
            }
            hypervisor.settle();
            assert_eq!(hypervisor.vcpu(0).events, [vlapic_core::Event::Nmi], "at {level:?}");
            assert_eq!(hypervisor.taken(0), [0x91], "at {level:?}");
            hypervisor.eoi(0);
            assert_eq!(hypervisor.taken(0), [0x91, 0x51], "at {level:?}");
        });
    }
}

/// Every notification that leaves the VM has the host's own vector, whatever vector the guest sent.
#[test]
fn guest_vectors_stay_inside() {
    for vector in [0x10, u64::from(NOTIFICATION), 0xff] {
        run_enabled(Config::new(Level::IpiVirtualization).vcpus(2), |hypervisor| {
            hypervisor.prompt = false;
            let _ = hypervisor.write(0, Register::IcrHigh, 1 << 24);
            let _ = hypervisor.write(0, Register::IcrLow, vector);
            let sent = hypervisor.machine.bus().take();
            assert_eq!(sent.map(|sent| (sent.vector, sent.destination)), Some((NOTIFICATION, 1)));
            hypervisor.core(1).raise(NOTIFICATION);
            hypervisor.prompt = true;
            hypervisor.settle();
            assert_eq!(hypervisor.taken(1), [vector as u8]);
        });
    }
}
