//! The same sequence of operations, on the model of AVIC with the driver and in plain emulation, leaves the same page
//! and has the guest take the same interrupts in the same order.

use avic::{Face, Feature, Wanted};
use vlapic_core::{Bank, IA32_APIC_BASE, LvtEntry, Mode, Register, Trigger, Width};
use vlapic_tests::avic_hypervisor::{Config, run};
use vlapic_tests::avic_model::{Capability, Knobs, Reading};
use vlapic_tests::hypervisor::Op;
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::{Step, Subject, sequence};

/// What the guest reads counts: what stands in the page is the processor's affair.
const PPR: u16 = 0x0a0;
/// AVIC leaves in the page what was written to SELF IPI, which no guest can read.
const SELF_IPI: u16 = 0x3f0;
const ICR_RESERVED: u64 = 0xfff3_3000;

/// Leaves out what AVIC does to the page and plain emulation does not: it stores what it is given, reserved bits and
/// all, it has memory where there is no register, and widths other than four bytes are not defined.
fn defined(step: Step, subject: &impl Subject, steady: bool) -> Option<Step> {
    Some(match step {
        // To x2APIC mode, to none, elsewhere; from some of which no sequence comes back soon.
        Step::Guest(_, Op::Wrmsr(IA32_APIC_BASE, _)) if steady => return None,
        Step::Write(vcpu, Register::SelfIpi, value) if subject.mode(vcpu) != Mode::X2Apic => {
            Step::Write(vcpu, Register::IcrLow, 1 << 18 | value & 0xff)
        }
        Step::Write(vcpu, Register::Eoi, _) => Step::Write(vcpu, Register::Eoi, 0),
        Step::Write(vcpu, Register::Tpr, value) => Step::Write(vcpu, Register::Tpr, value & 0xf0),
        // An interrupt that hardware delivers leaves TMR as it is.
        Step::Write(_, Register::IcrLow | Register::SelfIpi, value)
            if was_level(subject, value as u8) =>
        {
            return None;
        }
        Step::Post(_, vector, Trigger::Edge) if was_level(subject, vector) => return None,
        Step::Write(vcpu, Register::IcrLow, value) => {
            Step::Write(vcpu, Register::IcrLow, value & !ICR_RESERVED)
        }
        Step::Write(vcpu, Register::IcrHigh, value) => {
            Step::Write(vcpu, Register::IcrHigh, value & 0xff00_0000)
        }
        Step::Write(_, Register::Lvt(LvtEntry::Cmci), _) => return None,
        Step::Read(_, Register::Lvt(LvtEntry::Cmci) | Register::Eoi | Register::SelfIpi) => {
            return None;
        }
        Step::Guest(_, Op::Store { .. }) => return None,
        Step::Guest(_, Op::Load { offset, width }) => {
            let named = Register::at(offset & 0xff0);
            let odd = width != Width::Dword || offset % 16 != 0;
            if odd || named.is_none() || named == Some(Register::Lvt(LvtEntry::Cmci)) {
                return None;
            }
            step
        }
        _ => step,
    })
}

/// Whether a vector was level-triggered when somebody accepted it last.
fn was_level(subject: &impl Subject, vector: u8) -> bool {
    let bank = Register::Tmr(Bank::new(vector / 32)).offset();
    (0..subject.vcpus()).any(|vcpu| subject.word(vcpu, bank) >> (vector % 32) & 1 != 0)
}

/// Runs `count` random steps on both and compares after each. Returns in how many of them the processor helped.
fn compare(config: Config, count: usize) -> usize {
    let steps = sequence(config.seed, config.vcpus, count);
    let mut reference = Reference::new(config.vcpus, config.profile, config.mode);
    reference.register_upcalls();
    let helped = run(config, |hypervisor| {
        hypervisor.register_upcalls();
        let mut helped = 0;
        for (number, step) in steps.iter().enumerate() {
            let Some(step) = defined(*step, &reference, config.seed % 2 == 1) else { continue };
            let (expected, found) = (step.apply(&mut reference), step.apply(hypervisor));
            if let Step::Guest(vcpu, Op::WriteCr8(_)) = step
                && config.vcpus > 1
            {
                // While AVIC is off the page learns of CR8 at the next exit; arbitration looks at the page.
                hypervisor.leave(vcpu);
            }
            helped += usize::from(hypervisor.face(0) != Face::Emulated);
            let context = || {
                let before = &steps[number.saturating_sub(6)..number];
                let Config { seed, mode, knobs, .. } = config;
                format!("seed {seed} {mode:?} step {number} {step:x?} after {before:x?} {knobs:?}")
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
                    hypervisor.leave(vcpu);
                    for offset in
                        (0..0x400).step_by(4).filter(|offset| ![PPR, SELF_IPI].contains(offset))
                    {
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
        helped
    });
    let taken: usize = (0..config.vcpus).map(|vcpu| reference.seen(vcpu).taken.len()).sum();
    assert!(taken > count / 50, "only {taken} interrupts in {count} steps prove little");
    helped
}

fn at(wanted: Wanted, mode: Mode) -> usize {
    (0..6u64)
        .map(|seed| {
            let vcpus = 1 + seed as usize % 3;
            let config = Config { wanted, mode, seed: seed + 1, ..Config::new(vcpus) };
            compare(Config { cpus: vcpus + 1, ..config }, 4000)
        })
        .sum()
}

#[test]
fn emulated() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        assert_eq!(at(Wanted::NONE, mode), 0);
    }
}

#[test]
fn xavic() {
    let helped = at(Wanted::ALL, Mode::XApic);
    assert!(helped > 7000, "{helped} of 24000 steps prove little");
}

#[test]
fn x2avic() {
    let helped = at(Wanted::ALL, Mode::X2Apic);
    assert!(helped > 7000, "{helped} of 24000 steps prove little");
}

/// Whatever processors do where the manual leaves it open.
#[test]
fn every_reading_of_the_manual() {
    for (number, Reading { knobs, .. }) in Knobs::readings().into_iter().enumerate() {
        for mode in [Mode::XApic, Mode::X2Apic] {
            let config = Config { knobs, mode, cpus: 3, ..Config::new(2) };
            for seed in 0..4 {
                compare(Config { seed: 100 * number as u64 + seed, ..config }, 800);
            }
        }
    }
}

/// Asked for less, and on processors that have less.
#[test]
fn every_processor() {
    for (number, processor) in
        [Capability::svm(), Capability::avic(), Capability::x2avic()].into_iter().enumerate()
    {
        for mode in [Mode::XApic, Mode::X2Apic] {
            let config = Config { processor, mode, cpus: 4, ..Config::new(3) };
            compare(Config { seed: 200 + number as u64, ..config }, 1500);
        }
    }
    for feature in Feature::ALL {
        let wanted = Wanted::ALL.without(feature);
        let config = Config { wanted, cpus: 3, private_asid: true, ..Config::new(2) };
        compare(Config { seed: 300 + feature as u64, ..config }, 800);
    }
}
