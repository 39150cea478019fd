//! Readings of the manual under which the AVIC driver is not right on the model: what then goes wrong, and that nothing
//! else does. And the two that it is told of, which it trusts only if it is told to.

use avic::{Host, Inhibit, Trust};
use vlapic_core::{Mode, Register, Trigger};
use vlapic_tests::avic_hypervisor::{Config, Storm, run, run_enabled};
use vlapic_tests::avic_model::{Kind, Knobs};
use vlapic_tests::hypervisor::{Answer, Op};

const LOGICAL: u64 = 1 << 11;
const ALL_BUT_SELF: u64 = 3 << 18;

/// The default with the knob of this name turned.
fn turned(knob: &str) -> Knobs {
    let mut all = Knobs::all_readings().into_iter().filter(|reading| reading.knob == knob);
    let knobs = all.next().expect("a knob").knobs;
    assert!(all.next().is_none(), "{knob} has several other values");
    knobs
}

/// As hardware is believed to be, and as the other reading has it.
fn both(knob: &str) -> [Knobs; 2] {
    [Knobs::default(), turned(knob)]
}

fn many(mode: Mode, knobs: Knobs) -> Config {
    let knobs = Knobs { late_doorbells: true, ..knobs };
    Config { cpus: 8, mode, knobs, ..Config::new(64) }
}

/// The storm passes when its books expect what is wrong, and nothing more.
fn storms(knobs: Knobs) {
    for mode in [Mode::XApic, Mode::X2Apic] {
        for seed in 1..=3 {
            let config = Config { seed, ..many(mode, knobs) };
            let report = run(config, |hypervisor| Storm::new(hypervisor).run(8_000));
            assert!(report.taken > 300, "{mode:?}: {report:?}");
        }
    }
}

fn is_caught(config: Config) -> bool {
    let fails = |seed| {
        let config = Config { seed, ..config };
        std::panic::catch_unwind(|| run(config, |hypervisor| Storm::new(hypervisor).run(24_000)))
            .is_err()
    };
    (1..=20).any(fails)
}

/// A new reading that is lossy needs a test here, and a row in the README.
#[test]
fn these_are_all() {
    let names = |kind| Knobs::readings_of(kind).into_iter().map(|reading| reading.knob);
    assert_eq!(
        names(Kind::Lossy).collect::<Vec<_>>(),
        [
            "tpr_at_vmrun",
            "logical_lookups_come_first",
            "others_excludes_self",
            "level_eoi_is_a_trap",
            "log_bit_is_not_cached"
        ]
    );
    assert_eq!(
        names(Kind::Told).collect::<Vec<_>>(),
        ["svr_writes_never_exit", "stale_is_running"]
    );
}

/// What the driver does about each knob is said where its users look.
#[test]
fn the_readme_names_every_knob() {
    let readme = include_str!("../../avic/README.md");
    for reading in Knobs::all_readings() {
        assert!(readme.contains(&format!("`{}`", reading.knob)), "{}", reading.knob);
    }
}

/// Sent to one that there is and one that there is not: the exit comes after the first has it, so the driver, which
/// sends all of it, sends it to the first again.
#[test]
fn logical_ipis_that_deliver_as_they_go_come_twice() {
    for (knobs, taken) in both("logical_lookups_come_first").into_iter().zip([1, 2]) {
        let config = Config { mode: Mode::X2Apic, knobs, ..Config::new(2) };
        run_enabled(config, |hypervisor| {
            // The target takes it and ends it before the exit is handled.
            hypervisor.boundaries(1);
            let op = Op::Wrmsr(0x830, 6 << 32 | LOGICAL | 0x41);
            hypervisor.instruction_and(0, op, |hypervisor| {
                hypervisor.boundaries(1);
                assert_eq!(hypervisor.taken(1).len(), taken - 1);
                let _ = hypervisor.instruction(1, Op::Wrmsr(0x80b, 0));
            });
            hypervisor.settle();
            assert_eq!(hypervisor.taken(1).len(), taken);
        });
    }
    storms(turned("logical_lookups_come_first"));
}

#[test]
fn a_sender_that_is_one_of_the_others_interrupts_itself() {
    for (knobs, taken) in both("others_excludes_self").into_iter().zip([0, 1]) {
        for mode in [Mode::XApic, Mode::X2Apic] {
            run_enabled(Config { mode, knobs, ..Config::new(3) }, |hypervisor| {
                let exits = hypervisor.exits(0);
                let _ = hypervisor.write(0, Register::IcrLow, ALL_BUT_SELF | 0x41);
                assert_eq!(hypervisor.exits(0), exits);
                assert_eq!(hypervisor.taken(0).len(), taken);
                assert_eq!((hypervisor.taken(1), hypervisor.taken(2)), (&[0x41][..], &[0x41][..]));
            });
        }
    }
    storms(turned("others_excludes_self"));
}

/// The guest executes its EOI once more, which ends what it had interrupted.
#[test]
fn a_level_eoi_that_is_a_fault_ends_two() {
    for (knobs, left) in both("level_eoi_is_a_trap").into_iter().zip([&[0x52][..], &[]]) {
        for mode in [Mode::XApic, Mode::X2Apic] {
            run_enabled(Config { mode, knobs, ..Config::new(1) }, |hypervisor| {
                let _ = hypervisor.post(0, 0x52, Trigger::Edge);
                let _ = hypervisor.post(0, 0x61, Trigger::Level);
                assert_eq!(hypervisor.taken(0), [0x52, 0x61]);
                hypervisor.eoi(0);
                assert_eq!(hypervisor.broadcasts(0), [0x61]);
                let isr: Vec<_> =
                    hypervisor.slot(0).page().isr().iter().map(|vector| vector.get()).collect();
                assert_eq!(isr, left);
            });
        }
    }
    assert!(is_caught(many(Mode::XApic, turned("level_eoi_is_a_trap"))));
}

/// The IOMMU has read the entry while the vCPU ran, and does not see that there is to be an entry in its log now.
#[test]
fn an_iommu_that_caches_ga_log_intr_wakes_nobody() {
    for (knobs, woken) in both("log_bit_is_not_cached").into_iter().zip([true, false]) {
        run_enabled(Config { knobs, ..Config::new(1) }, |hypervisor| {
            hypervisor.route(0, 0x60);
            hypervisor.device_interrupt(0);
            assert_eq!(hypervisor.taken(0), [0x60], "it runs: a doorbell");
            hypervisor.eoi(0);
            assert_eq!(hypervisor.execute(0, Op::Halt), Answer::Done);
            hypervisor.device_interrupt(0);
            assert_eq!(hypervisor.taken(0).len(), if woken { 2 } else { 1 });
        });
    }
    assert!(is_caught(many(Mode::XApic, turned("log_bit_is_not_cached"))));
}

/// TPR is let through in x2APIC mode, and what the processor does not refuse nobody does.
#[test]
fn reserved_bits_of_tpr_are_the_processors_to_refuse() {
    let answers = [Answer::GeneralProtection, Answer::Done];
    for (knobs, answer) in both("x2apic_checks_come_first").into_iter().zip(answers) {
        run_enabled(Config { mode: Mode::X2Apic, knobs, ..Config::new(1) }, |hypervisor| {
            assert_eq!(hypervisor.execute(0, Op::Wrmsr(0x808, 0x120)), answer);
            // What is not let through is refused by the driver, whatever the processor does.
            for msr in [0x802, 0x80d, 0x80c, 0x80e, 0x831] {
                let wrong = hypervisor.execute(0, Op::Wrmsr(msr, 0));
                assert_eq!(wrong, Answer::GeneralProtection, "{msr:#x}");
            }
        });
    }
}

/// V_TPR has the class alone.
#[test]
fn a_vmrun_that_writes_v_tpr_to_the_page_loses_tpr_3_to_0() {
    for reading in Knobs::all_readings().iter().filter(|reading| reading.knob == "tpr_at_vmrun") {
        let kept = if reading.kind == Kind::Lossy { 0x50 } else { 0x57 };
        run_enabled(Config { knobs: reading.knobs, ..Config::new(1) }, |hypervisor| {
            let _ = hypervisor.write(0, Register::Tpr, 0x57);
            assert_eq!(hypervisor.read(0, Register::Tpr), 0x57);
            hypervisor.leave(0);
            assert_eq!(hypervisor.read(0, Register::Tpr), kept, "{}", reading.name);
            let _ = hypervisor.post(0, 0x5f, Trigger::Edge);
            let _ = hypervisor.post(0, 0x60, Trigger::Edge);
            assert_eq!(hypervisor.taken(0), [0x60], "{}", reading.name);
        });
        storms(reading.knobs);
    }
}

/// CPUs with APIC IDs on both sides of 255.
fn wide_cpus(knobs: Knobs, wide_doorbell: bool, mode: Mode) -> Config {
    let host = Host { trust: Trust { wide_doorbell, ..Trust::NOTHING }, ..Host::new() };
    Config { first_cpu_id: 252, host, ..many(mode, knobs) }
}

/// Doorbells to APIC IDs above 255 are rung only if the integrator vouches for them.
#[test]
fn doorbells_to_wide_ids() {
    for (knobs, wide) in both("doorbell_takes_wide_ids").into_iter().zip([true, false]) {
        for mode in [Mode::XApic, Mode::X2Apic] {
            for wide_doorbell in [false, true] {
                let config = wide_cpus(knobs, wide_doorbell, mode);
                if wide || !wide_doorbell {
                    let report = run(config, |hypervisor| Storm::new(hypervisor).run(8_000));
                    assert!(report.taken > 300, "{report:?}");
                } else {
                    assert!(is_caught(config), "a trust that is not deserved");
                }
            }
        }
    }
}

/// Entry 255 is used only if the integrator vouches for it.
#[test]
fn entry_255_of_x2avic() {
    for (knobs, works) in both("x2avic_uses_entry_255").into_iter().zip([true, false]) {
        for entry_255 in [false, true] {
            let host = Host { trust: Trust { entry_255, ..Trust::NOTHING }, ..Host::new() };
            let config = Config { mode: Mode::X2Apic, cpus: 2, knobs, host, ..Config::new(256) };
            run(config, |hypervisor| {
                hypervisor.unload(1);
                hypervisor.load(255, 1);
                for index in [0, 255] {
                    let _ = hypervisor.write(index, Register::Svr, 0x1ff);
                }
                let inhibited = hypervisor.vcpu(0).driver.inhibits().contains(Inhibit::Id255);
                assert_eq!(inhibited, !entry_255);
                let exits = hypervisor.exits(0);
                let _ = hypervisor.execute(0, Op::Wrmsr(0x830, 255 << 32 | 0x41));
                assert_eq!(hypervisor.taken(255), [0x41], "always");
                let silent = hypervisor.exits(0) == exits;
                assert_eq!(silent, entry_255 && works, "as far as that is trusted, and true");
                // A broadcast that passes it by is what the trust is about.
                let _ = hypervisor.write(0, Register::IcrLow, ALL_BUT_SELF | 0x51);
                hypervisor.eoi(255);
                let all = hypervisor.taken(255).len() == 2;
                assert_eq!(all, works || !entry_255);
            });
        }
    }
}
