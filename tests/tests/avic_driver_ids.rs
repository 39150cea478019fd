//! Every reason for which AVIC leaves an IPI incomplete (exit 401), with the driver on the model, under every reading of
//! the manual: what arrives is what arrives in plain emulation.

use avic::Face;
use vlapic_core::{Event, Mode, Register};
use vlapic_tests::avic_hypervisor::{Config, Hypervisor, run_enabled};
use vlapic_tests::avic_model::{Knobs, Reading, code};
use vlapic_tests::hypervisor::{Answer, Op};
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::{Step, Subject};

const LOGICAL: u32 = 1 << 11;
const OTHERS: u32 = 3 << 18;

/// The identifiers of exit 401 that a processor without Secure AVIC can give. 3 takes a page that cannot be, which the
/// driver's tables never name.
const IDS: [u64; 4] = [0, 1, 2, 4];

/// A command of vCPU 0, and the identifiers that its exit may have.
struct Case {
    low: u32,
    /// An APIC ID, or a set of flat or cluster IDs.
    destination: u32,
    ids: &'static [u64],
}

const fn to(destination: u32, low: u32, ids: &'static [u64]) -> Case {
    Case { low, destination, ids }
}

/// vCPU 1 runs, vCPU 2 sleeps, and there is no other.
const CASES: [Case; 17] = [
    // Of another type: NMI with the vectors that kernels use, INIT, level-triggered, lowest priority, SMI, reserved.
    to(1, 0x0400, &[0, 4]),
    to(1, 0x0402, &[0, 4]),
    to(2, 0x4402, &[0, 4]),
    to(1, 0x4500, &[0, 4]),
    to(2, 0xc041, &[0]),
    to(1, 0xc00f, &[0, 4]),
    to(6, LOGICAL | 0x0141, &[0]),
    to(0, OTHERS | 0x0402, &[0, 4]),
    // To one that sleeps.
    to(2, 0x0042, &[1]),
    to(6, LOGICAL | 0x0043, &[1]),
    to(0, OTHERS | 0x0044, &[1]),
    to(0, 2 << 18 | 0x0045, &[1]),
    // To one that is not there.
    to(9, 0x0041, &[2]),
    to(0x10, LOGICAL | 0x0041, &[2]),
    // With a vector that cannot be.
    to(1, 0x000f, &[4]),
    to(2, 0x0000, &[4]),
    to(0, 1 << 18 | 0x0002, &[4]),
];

/// What the guests see of it: vectors, other events, errors at the sender.
fn outcome(subject: &impl Subject) -> Vec<(Vec<u8>, Vec<Event>, u32)> {
    let of = |vcpu| {
        let seen = subject.seen(vcpu);
        (seen.taken.to_vec(), seen.events.to_vec(), subject.word(vcpu, Register::Esr.offset()))
    };
    (0..subject.vcpus()).map(of).collect()
}

fn send(subject: &mut impl Subject, case: &Case) {
    let x2apic = subject.mode(0) == Mode::X2Apic;
    if x2apic {
        let value = u64::from(case.destination) << 32 | u64::from(case.low);
        assert_eq!(subject.execute(0, Op::Wrmsr(0x830, value)), Answer::Done);
    } else {
        Step::Write(0, Register::IcrHigh, u64::from(case.destination) << 24).apply(subject);
        Step::Write(0, Register::IcrLow, case.low.into()).apply(subject);
    }
}

/// Three APICs with logical IDs of their own; the last sleeps.
fn set_up(subject: &mut impl Subject) {
    for vcpu in 0..3 {
        if subject.mode(0) == Mode::XApic {
            Step::Write(vcpu, Register::Ldr, 1 << (24 + vcpu)).apply(subject);
        }
        Step::Write(vcpu, Register::Svr, 0x1ff).apply(subject);
    }
    assert_eq!(subject.execute(2, Op::Halt), Answer::Done);
}

fn exit_401(hypervisor: &Hypervisor<'_>) -> Option<u64> {
    let exit = hypervisor.vcpu(0).last_exit.filter(|exit| exit.code == code::INCOMPLETE_IPI);
    exit.map(|exit| exit.info_2 >> 32)
}

#[test]
fn every_identifier_under_every_reading() {
    let mut seen = std::collections::BTreeSet::new();
    let others = Knobs::readings().into_iter().map(|Reading { name, knobs, .. }| (name, knobs));
    for (name, knobs) in others.chain([("default", Knobs::default())]) {
        for mode in [Mode::XApic, Mode::X2Apic] {
            for case in &CASES {
                let context = format!("{name}, {mode:?}, {:#x} to {}", case.low, case.destination);
                let config = Config { knobs, mode, ..Config::new(3) };
                let mut reference = Reference::new(3, config.profile, mode);
                set_up(&mut reference);
                send(&mut reference, case);
                Step::Write(0, Register::Esr, 0).apply(&mut reference);
                run_enabled(config, |hypervisor| {
                    set_up(hypervisor);
                    // The logical table fills as they come by.
                    for _ in 0..2 {
                        (0..3).for_each(|index| hypervisor.leave(index));
                        hypervisor.settle();
                    }
                    assert_ne!(hypervisor.face(0), Face::Emulated, "{context}");
                    let exits = hypervisor.exits(0);
                    send(hypervisor, case);
                    assert_eq!(hypervisor.exits(0), exits + 1, "{context}: one exit");
                    let id = exit_401(hypervisor).expect("exit 401");
                    assert!(case.ids.contains(&id), "{context}: {id}");
                    seen.insert(id);
                    let page = hypervisor.slot(0).page();
                    assert_eq!(page.read(Register::IcrLow), case.low, "{context}: not busy");
                    Step::Write(0, Register::Esr, 0).apply(hypervisor);
                    assert_eq!(outcome(hypervisor), outcome(&reference), "{context}");
                });
            }
        }
    }
    assert!(seen.into_iter().eq(IDS), "all that there are");
}
