//! The loop that the bare-metal image runs on a processor with AVIC, on the silicon model: the AVIC-only cases.

use vlapic_core::Mode;
use vlapic_svm_loop::Level;
use vlapic_svm_loop::cases::CASES;
use vlapic_tests::avic_hypervisor::Config;
use vlapic_tests::avic_model::{Capability, Knobs, Reading};
use vlapic_tests::svm_loop::run;

/// Every case in one mode, on a processor of one reading of the manual.
fn cases(mode: Mode, reading: &str, knobs: Knobs) {
    let level = if mode == Mode::X2Apic { Level::X2Avic } else { Level::Avic };
    for case in CASES {
        let config = Config { mode, knobs, ..Config::new(case.vcpus) };
        let results = run(config, level, case);
        assert!(
            results.iter().all(|result| *result == Ok(0)),
            "{} {mode:?}, {reading}: {results:?}",
            case.name
        );
    }
}

#[test]
fn xavic() {
    cases(Mode::XApic, "default", Knobs::default());
}

#[test]
fn x2avic() {
    cases(Mode::X2Apic, "default", Knobs::default());
}

/// The loop is right whichever way the manual is read, where it leaves something open.
#[test]
fn every_other_reading() {
    for Reading { name, knobs, .. } in Knobs::readings() {
        for mode in [Mode::XApic, Mode::X2Apic] {
            // As an IPI that is not accelerated it reaches everybody too, but it costs an exit.
            if (name, mode) != ("all ones is no broadcast", Mode::X2Apic) {
                cases(mode, name, knobs);
            }
        }
    }
}

/// A processor without AVIC is refused by name; one without x2AVIC too, where that is needed.
#[test]
fn what_is_lacking_is_named() {
    let case = &CASES[0];
    let lacks = |level, processor| {
        let config = Config { processor, ..Config::new(case.vcpus) };
        run(config, level, case).remove(0).unwrap_err()
    };
    assert!(lacks(Level::Avic, Capability::svm()).starts_with("avic is not granted"));
    assert!(lacks(Level::X2Avic, Capability::avic()).starts_with("x2avic is not granted"));
}
