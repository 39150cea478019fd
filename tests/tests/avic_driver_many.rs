//! Storms of 64 vCPUs on 8 cores of the AVIC model: every interrupt sent is taken exactly as often as the architecture
//! says, whatever goes on besides; and a host that leaves one step out loses some.
//!
//! `AVIC_STORM_SEED=n` replays one seed, `AVIC_STORM_SEEDS=n` runs so many, `AVIC_STORM_STEPS=n` has each last longer.

use avic::Wanted;
use vlapic_core::{Mode, SvrWrites};
use vlapic_tests::avic_hypervisor::{Broken, Config, Report, Storm, run};
use vlapic_tests::avic_model::{Capability, Knobs, Reading};

const STEPS: u64 = 28_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn many(mode: Mode) -> Config {
    let knobs = Knobs { late_doorbells: true, ..Knobs::default() };
    Config { cpus: 8, mode, knobs, ..Config::new(64) }
}

/// Says how to see a failure again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with AVIC_STORM_SEED={}", self.0);
        }
    }
}

fn storm(config: Config) -> Report {
    let _replay = Replay(config.seed);
    let steps = variable("AVIC_STORM_STEPS").unwrap_or(STEPS) as usize;
    run(config, |hypervisor| Storm::new(hypervisor).run(steps))
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let replayed = variable("AVIC_STORM_SEED");
    let count = variable("AVIC_STORM_SEEDS").unwrap_or(count);
    let first = replayed.unwrap_or(1);
    first..first + if replayed.is_some() { 1 } else { count }
}

fn storms(config: Config, count: u64) -> Vec<Report> {
    let one = |seed| {
        let report = storm(Config { seed, ..config });
        println!("seed {seed}: {report:?}");
        assert!(report.taken > 2000, "{report:?}");
        assert!(report.entries.iter().sum::<usize>() > 500, "{report:?}");
        assert!(report.upcalls > 50 && report.overflows > 5, "{report:?}");
        assert!(report.sleeps > 100 && report.migrations > 200, "{report:?}");
        report
    };
    seeds(count).map(one).collect()
}

#[test]
fn xavic() {
    let _ = storms(many(Mode::XApic), 3);
}

#[test]
fn x2avic() {
    let reports = storms(many(Mode::X2Apic), 3);
    let waits = reports.iter().map(|report| report.waits_for_peers);
    assert!(waits.sum::<usize>() > 3 || reports.len() < 3, "{reports:?}");
}

#[test]
fn emulated() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let _ = storms(Config { wanted: Wanted::NONE, ..many(mode) }, 1);
    }
}

/// Doorbells that arrive at once, ASIDs of their own, a processor with xAVIC only.
#[test]
fn other_machines() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let _ = storms(Config { knobs: Knobs::default(), private_asid: true, ..many(mode) }, 1);
    }
    let _ = storms(Config { processor: Capability::avic(), ..many(Mode::XApic) }, 1);
}

/// No store to SVR exits; owed upcalls are looked at again in time.
#[test]
fn silent_svr() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let config = many(mode);
        let knobs = Knobs { svr_writes_never_exit: true, ..config.knobs };
        let svr_writes = SvrWrites::Silent { recheck: 1000 };
        let _ = storms(Config { knobs, svr_writes, ..config }, 2);
    }
}

/// Whatever processors do where the manual leaves it open.
#[test]
fn every_reading_of_the_manual() {
    for (number, reading) in Knobs::readings().into_iter().enumerate() {
        let Reading { name, knobs, .. } = reading;
        for mode in [Mode::XApic, Mode::X2Apic] {
            let seed = number as u64;
            println!("{name}, {mode:?}");
            let config =
                Config { knobs: Knobs { late_doorbells: true, ..knobs }, seed, ..many(mode) };
            let report = run(config, |hypervisor| Storm::new(hypervisor).run(6_000));
            assert!(report.taken > 200, "{name}: {report:?}");
        }
    }
}

/// Erratum 1235 on a processor that says it has it: the driver never publishes IsRunning.
#[test]
fn the_erratum_with_its_workaround() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let _ = storms(with_erratum(mode, 0x17), 2);
    }
}

/// The same storm, on a processor that does not say so, and with few enough vCPUs that IPIs mostly meet one that runs.
/// With many the driver hides the erratum: one target that does not run has it tell all of them.
#[test]
fn the_erratum_without_its_workaround() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        assert!(is_caught(Config { vcpus: 12, ..with_erratum(mode, 0x19) }), "{mode:?}");
        storm(Config { vcpus: 12, ..with_erratum(mode, 0x17) });
    }
}

fn with_erratum(mode: Mode, family: u32) -> Config {
    let config = many(mode);
    let mut processor = config.processor;
    processor.family = family;
    Config { processor, knobs: Knobs { stale_is_running: true, ..config.knobs }, ..config }
}

/// Whether a storm fails, under any of a few seeds.
fn is_caught(config: Config) -> bool {
    let fails = |seed| {
        let config = Config { seed, ..config };
        std::panic::catch_unwind(|| run(config, |hypervisor| Storm::new(hypervisor).run(24_000)))
            .is_err()
    };
    (1..=40).any(fails)
}

/// Each step of the host's part, left out.
#[test]
fn every_step_is_needed() {
    for (broken, modes) in [
        (Broken::SleepsAnyway, BOTH),
        (Broken::SleepsInSilence, BOTH),
        (Broken::IgnoresAnnouncements, BOTH),
        (Broken::IgnoresLog, BOTH),
        (Broken::IgnoresOverflow, BOTH),
        (Broken::RingsNoDoorbell, BOTH),
        (Broken::IgnoresKicks, BOTH),
        (Broken::ForgetsEarlyWakes, BOTH),
        (Broken::DropsInjections, BOTH),
        (Broken::KeepsWindow, XAPIC),
        (Broken::KeepsTranslations, XAPIC),
        (Broken::DeniesSharedAsid, XAPIC),
        (Broken::NeverFlushes, XAPIC),
        (Broken::IgnoresPeers, X2APIC),
    ] {
        for &mode in modes {
            assert!(is_caught(Config { broken, ..many(mode) }), "{broken:?} in {mode:?}");
        }
    }
}

const BOTH: &[Mode] = &[Mode::XApic, Mode::X2Apic];
const XAPIC: &[Mode] = &[Mode::XApic];
const X2APIC: &[Mode] = &[Mode::X2Apic];

#[test]
fn the_same_seed_is_the_same_storm() {
    let of = |seed| storm(Config { seed, ..many(Mode::XApic) });
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}
