//! The loop that the bare-metal image runs on a processor with AVIC, on the silicon model: the AVIC-only cases.

use vlapic_core::Mode;
use vlapic_svm_loop::Level;
use vlapic_svm_loop::cases::CASES;
use vlapic_tests::avic_hypervisor::Config;
use vlapic_tests::avic_model::Knobs;
use vlapic_tests::svm_loop::run;

/// Every case whose name contains `part`, in one mode.
fn cases(mode: Mode, knobs: Knobs) {
    let level = if mode == Mode::X2Apic { Level::X2Avic } else { Level::Avic };
    for case in CASES {
        let config = Config { mode, knobs, ..Config::new(case.vcpus) };
        let results = run(config, level, case);
        assert!(
            results.iter().all(|result| *result == Ok(0)),
            "{} {mode:?}: {results:?}",
            case.name
        );
    }
}

#[test]
fn xavic() {
    cases(Mode::XApic, Knobs::default());
}

#[test]
fn x2avic() {
    cases(Mode::X2Apic, Knobs::default());
}
