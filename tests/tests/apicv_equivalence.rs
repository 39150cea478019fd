//! The same sequence of operations, on the model with the driver at every level and in plain emulation, leaves the same
//! page and has the guest take the same interrupts in the same order.

use apicv::{Capabilities, Feature, Features, HostMode, Wanted, negotiate};
use vlapic_core::{Mode, Register};
use vlapic_tests::hypervisor::{Config, Level, run};
use vlapic_tests::model::{self, Capability, Knobs, Reading};
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::{Step, Subject, sequence};

/// What the guest reads counts: what stands in the page is the processor's affair.
const PPR: u16 = 0x0a0;
/// No guest can read it.
const SELF_IPI: u16 = 0x3f0;

/// Runs `count` random steps on both and compares after each.
fn compare(config: Config, count: usize) -> u64 {
    let steps = sequence(config.seed, config.vcpus, count);
    let mut reference = Reference::new(config.vcpus, config.profile, config.mode);
    reference.register_upcalls();
    let faults = run(config, |hypervisor| {
        hypervisor.register_upcalls();
        for (number, step) in steps.iter().enumerate() {
            let (expected, found) = (step.apply(&mut reference), step.apply(hypervisor));
            let context = || {
                let before = &steps[number.saturating_sub(5)..number];
                let Config { seed, mode, wanted, .. } = config;
                format!("seed {seed} {mode:?} {wanted:?} step {number} {step:x?} after {before:x?}")
            };
            assert_eq!(found, expected, "answer, {}", context());
            for vcpu in 0..config.vcpus {
                let (expected, found) = (reference.seen(vcpu), hypervisor.seen(vcpu));
                if found != expected {
                    let latest =
                        |seen: &[u8]| format!("{:x?}", &seen[seen.len().saturating_sub(4)..]);
                    unreachable!(
                        "vCPU {vcpu}: takes {}, must {}; broadcasts {}, must {}; base {:#x}, must {:#x}; {:?}, must \
                         {:?}; {}",
                        latest(found.taken),
                        latest(expected.taken),
                        latest(found.broadcasts),
                        latest(expected.broadcasts),
                        found.base,
                        expected.base,
                        found.events.last(),
                        expected.events.last(),
                        context()
                    );
                }
                if number % 8 == 0 || number + 1 == steps.len() {
                    let counts = |offset: &u16| {
                        *offset != PPR && (*offset != SELF_IPI || config.knobs.delivery_stores_msrs)
                    };
                    for offset in (0..0x400).step_by(4).filter(counts) {
                        let (expected, found) =
                            (reference.word(vcpu, offset), hypervisor.word(vcpu, offset));
                        assert_eq!(found, expected, "vCPU {vcpu} page {offset:#x}, {}", context());
                    }
                    let read = Step::Read(vcpu, Register::Ppr);
                    let (expected, found) = (read.apply(&mut reference), read.apply(hypervisor));
                    assert_eq!(found, expected, "vCPU {vcpu} PPR, {}", context());
                }
            }
        }
        hypervisor.faults()
    });
    let taken: usize = (0..config.vcpus).map(|vcpu| reference.seen(vcpu).taken.len()).sum();
    assert!(taken > count / 50, "only {taken} interrupts in {count} steps prove little");
    faults
}

/// 2 modes, 4 seeds, each 2000 steps, some CPUs to spare.
fn at(level: Level) {
    for mode in [Mode::XApic, Mode::X2Apic] {
        for seed in 0..4 {
            let vcpus = 1 + seed as usize % 3;
            let config = Config::new(level).mode(mode).vcpus(vcpus).seed(seed + 1);
            compare(Config { cpus: vcpus + 1, ..config }, 2000);
        }
    }
}

#[test]
fn emulated() {
    at(Level::Emulated);
}

#[test]
fn tpr_shadow() {
    at(Level::TprShadow);
}

#[test]
fn apic_access() {
    at(Level::ApicAccess);
}

#[test]
fn register_virtualization() {
    at(Level::RegisterVirtualization);
}

#[test]
fn virtual_interrupt_delivery() {
    at(Level::VirtualInterruptDelivery);
}

#[test]
fn posted() {
    at(Level::Posted);
}

#[test]
fn ipi_virtualization() {
    at(Level::IpiVirtualization);
}

/// Asked for everything, the driver takes what each generation of processors has.
#[test]
fn every_processor() {
    for processor in model::Level::ALL {
        for mode in [Mode::XApic, Mode::X2Apic] {
            let config = Config::new(Level::IpiVirtualization).mode(mode).vcpus(2).seed(7);
            compare(Config { processor: Capability::at(processor), cpus: 3, ..config }, 500);
        }
    }
}

/// Whatever processors do where the manual leaves it open, and however the host addresses its own APICs.
#[test]
fn every_reading_of_the_manual() {
    for (number, Reading { knobs, .. }) in Knobs::readings().into_iter().enumerate() {
        for level in [Level::VirtualInterruptDelivery, Level::IpiVirtualization] {
            for (seed, mode) in [Mode::XApic, Mode::X2Apic, Mode::XApic].into_iter().enumerate() {
                let seed = (10 * number + seed) as u64;
                let config = Config::new(level).mode(mode).vcpus(2).seed(seed);
                let profile = config.profile.with_cmci(true).with_eoi_suppression(false);
                compare(Config { knobs, profile, host: HostMode::X2Apic, cpus: 3, ..config }, 500);
            }
        }
    }
}

/// Any VMREAD or VMWRITE of any call may fail; the call is repeated, and nobody notices.
#[test]
fn failing_vmcs_accesses() {
    for level in Level::ALL {
        let config = Config::new(level).vcpus(2).seed(11);
        let faults = compare(Config { fault_in: 6, cpus: 3, ..config }, 1500);
        assert!(faults > 20, "{faults} failures at {level:?} prove little");
    }
}

/// Every set of features that negotiation can come to, among them virtual-interrupt delivery without register
/// virtualization.
#[test]
fn every_set_of_features() {
    let mut seen = Vec::new();
    let capabilities = Capabilities::detect(&Capability::full()).unwrap();
    for bits in 0..1u32 << Feature::COUNT {
        let chosen = Feature::ALL.into_iter().filter(|&feature| bits & 1 << feature as u32 != 0);
        let wanted = Wanted::from(chosen.collect::<Features>());
        let granted = negotiate(wanted, &capabilities).features();
        if seen.contains(&granted) {
            continue;
        }
        seen.push(granted);
        let mode = if bits.is_multiple_of(3) { Mode::X2Apic } else { Mode::XApic };
        let config = Config::new(Level::Emulated).vcpus(2).mode(mode).seed(bits.into());
        compare(Config { wanted, cpus: 3, ..config }, 400);
    }
    assert!(seen.len() > 20, "{} sets", seen.len());
}

/// At every level that virtualizes accesses to the register window, a host that flushes nothing is found out: the same
/// sequences do not end alike.
#[test]
fn translations_that_are_not_flushed() {
    for level in Level::ALL {
        let fails = |seed| {
            let config = Config::new(level).vcpus(2).seed(seed);
            let config = Config { ignores_flush: true, cpus: 3, ..config };
            std::panic::catch_unwind(|| compare(config, 2000)).is_err()
        };
        let virtualizes = level >= Level::ApicAccess;
        assert_eq!((1..=4).any(fails), virtualizes, "{level:?}");
    }
}
