//! A VM that is saved in the middle of anything and restored, on the same or another way of running local APICs, goes
//! on as one that was not.

use vlapic_core::{IA32_APIC_BASE, LvtEntry, Mode, Profile, Register, Width};
use vlapic_tests::avic_hypervisor;
use vlapic_tests::hypervisor::{Config, Level, Op, run};
use vlapic_tests::migrate::Movable;
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::{Random, Step, Subject, sequence};

/// PPR is the processor's affair between reads; nobody can read SELF IPI.
const NOT_COMPARED: [u16; 2] = [0x0a0, 0x3f0];

/// Has both do `steps` and compares after each.
fn go_on(stays: &mut Reference, moves: &mut impl Movable, steps: &[Step], context: &str) {
    for (number, step) in steps.iter().enumerate() {
        let (expected, found) = (step.apply(stays), step.apply(moves));
        assert_eq!(found, expected, "{context}: answer to step {number}, {step:x?}");
        for vcpu in 0..stays.vcpus() {
            let (expected, found) = (stays.seen(vcpu), moves.seen(vcpu));
            assert!(found == expected, "{context}: vCPU {vcpu} at step {number}, {step:x?}");
        }
    }
}

/// The pages, which only agree where nobody is in guest mode.
fn same_pages(stays: &Reference, moves: &impl Movable, context: &str) {
    for vcpu in 0..stays.vcpus() {
        for offset in (0..0x400).step_by(4).filter(|offset| !NOT_COMPARED.contains(offset)) {
            let (expected, found) = (stays.word(vcpu, offset), moves.word(vcpu, offset));
            assert_eq!(found, expected, "{context}: vCPU {vcpu}, page {offset:#x}");
        }
    }
}

/// Three lives: on `first`, then on `second`, then on `first` again.
fn there_and_back(
    stays: &mut Reference,
    first: &mut impl Movable,
    second: &mut impl Movable,
    steps: &[Step],
    context: &str,
) {
    let third = steps.len() / 3;
    go_on(stays, first, &steps[..third], context);
    move_over(stays, first, second, context);
    go_on(stays, second, &steps[third..2 * third], context);
    move_over(stays, second, first, context);
    go_on(stays, first, &steps[2 * third..], context);
    let _ = first.save();
    same_pages(stays, first, context);
}

fn move_over(stays: &Reference, from: &mut impl Movable, to: &mut impl Movable, context: &str) {
    let saved = from.save();
    same_pages(stays, from, context);
    to.restore(&saved, from.now());
    same_pages(stays, to, context);
    // What was restored is saved again as it was.
    let again = to.save();
    for (vcpu, (before, after)) in saved.iter().zip(&again).enumerate() {
        assert_eq!(after.state, before.state, "{context}: vCPU {vcpu}");
    }
}

#[test]
fn plain_emulation() {
    for profile in [Profile::intel(), Profile::amd(), Profile::intel().with_writable_xapic_id(true)]
    {
        for seed in 0..40 {
            let mode = if seed % 2 == 0 { Mode::XApic } else { Mode::X2Apic };
            let vcpus = 1 + seed as usize % 3;
            let make = || Reference::new(vcpus, profile, mode);
            let (mut stays, mut first, mut second) = (make(), make(), make());
            stays.register_upcalls();
            first.register_upcalls();
            let steps = sequence(seed, vcpus, 600);
            let context = format!("{profile:?} seed {seed}");
            there_and_back(&mut stays, &mut first, &mut second, &steps, &context);
        }
    }
}

/// From every level of APICv to every other.
#[test]
fn apicv_levels() {
    for from in Level::ALL {
        for to in Level::ALL {
            for mode in [Mode::XApic, Mode::X2Apic] {
                let config = Config::new(from).mode(mode).vcpus(2).seed(5);
                let mut stays = Reference::new(2, config.profile, mode);
                stays.register_upcalls();
                let steps = sequence(100 + from as u64 * 7 + to as u64, 2, 450);
                let context = format!("{from:?} to {to:?}, {mode:?}");
                run(config, |first| {
                    first.register_upcalls();
                    let other = Config::new(to).mode(Mode::XApic).vcpus(2).seed(6);
                    run(other, |second| {
                        there_and_back(&mut stays, first, second, &steps, &context);
                    });
                });
            }
        }
    }
}

/// What AVIC does to the page as plain emulation does.
fn defined(step: &Step) -> bool {
    !matches!(
        step,
        Step::Guest(_, Op::Wrmsr(IA32_APIC_BASE, _) | Op::Store { .. } | Op::Load { .. })
            | Step::Write(
                _,
                Register::SelfIpi
                    | Register::IcrLow
                    | Register::IcrHigh
                    | Register::Lvt(LvtEntry::Cmci)
                    | Register::Eoi
                    | Register::Tpr,
                _
            )
            | Step::Read(_, Register::Lvt(LvtEntry::Cmci) | Register::Eoi | Register::SelfIpi)
    )
}

/// From AVIC to plain emulation and back, and from AVIC to AVIC.
#[test]
fn avic() {
    for seed in 0..16 {
        let mode = if seed % 2 == 0 { Mode::XApic } else { Mode::X2Apic };
        let mut random = Random::new(seed);
        let mut steps = sequence(seed, 2, 900);
        steps.retain(defined);
        // EOIs and priorities, as AVIC has them.
        let steps: Vec<_> = steps
            .into_iter()
            .flat_map(|step| {
                let vcpu = random.below(2) as usize;
                let tpr = random.below(16) << 4;
                [step, Step::Write(vcpu, Register::Eoi, 0), Step::Write(vcpu, Register::Tpr, tpr)]
            })
            .collect();
        let config = avic_hypervisor::Config { mode, seed, ..avic_hypervisor::Config::new(2) };
        let mut stays = Reference::new(2, config.profile, mode);
        stays.register_upcalls();
        let context = format!("AVIC {mode:?} seed {seed}");
        avic_hypervisor::run(config, |first| {
            first.register_upcalls();
            if seed < 8 {
                let mut second = Reference::new(2, config.profile, Mode::XApic);
                there_and_back(&mut stays, first, &mut second, &steps, &context);
            } else {
                avic_hypervisor::run(config, |second| {
                    there_and_back(&mut stays, first, second, &steps, &context);
                });
            }
        });
    }
}

/// A width that the manuals leave undefined would not be comparable; that none is in the sequences is what `defined`
/// is for.
#[test]
fn the_filter_filters() {
    let odd = Step::Guest(0, Op::Load { offset: 0, width: Width::Byte });
    assert!(!defined(&odd));
    assert!(defined(&Step::Write(0, Register::Svr, 0x1ff)));
}
