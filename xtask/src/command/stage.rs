//! The stages of `cargo xtask test`.

mod cargo;
mod libtest;
mod machine;

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use super::{Context, exhaustive, oracle};
use crate::cli::{Machine, TestArgs};
use crate::report::{Counts, Skip};

/// One stage: a name and what to do.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    work: fn(&Context, &TestArgs) -> Result<Outcome>,
}

/// What a stage came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// What was skipped, and why.
    pub(crate) skips: Vec<Skip>,
    /// What failed: enough to act on.
    pub(crate) failures: Vec<String>,
}

/// A finished stage.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    pub(crate) skips: Vec<Skip>,
    pub(crate) failures: Vec<String>,
    pub(crate) seconds: f64,
}

/// All stages, the quick ones first.
pub(crate) const STAGES: &[Stage] = &[
    Stage { name: "fmt", about: "formatting", work: |context, _| cargo::fmt(context) },
    Stage {
        name: "clippy",
        about: "clippy, warnings denied",
        work: |context, _| cargo::clippy(context),
    },
    Stage {
        name: "clippy-image",
        about: "clippy on the image",
        work: |context, _| cargo::clippy_image(context),
    },
    Stage {
        name: "doc",
        about: "documentation, warnings denied",
        work: |context, _| cargo::doc(context),
    },
    Stage {
        name: "tests",
        about: "unit, scenario and documentation tests",
        work: |context, _| cargo::tests(context),
    },
    Stage {
        name: "bare-target",
        about: "the drivers on x86_64-unknown-none",
        work: |context, _| cargo::bare_target(context),
    },
    Stage {
        name: "codegen",
        about: "the machine code of the interrupt path",
        work: |context, _| codegen(context),
    },
    Stage {
        name: "package",
        about: "packaging of the published crates",
        work: |context, _| cargo::package(context),
    },
    Stage {
        name: "oracle-kvm",
        about: "the kernel's local APIC against ours",
        work: |context, _| oracle_kvm(context),
    },
    Stage {
        name: "oracle-apicv-model",
        about: "the APICv of Bochs against our model of it",
        work: |context, _| oracle_apicv_model(context),
    },
    Stage {
        name: "exhaustive",
        about: "all 2^32 words of ICR against the manuals",
        work: |context, _| Ok(outcome_of(&exhaustive::all_words(context)?)),
    },
    Stage {
        name: "fuzz",
        about: "hostile input: the committed corpus, and some seconds more",
        work: |context, _| fuzz(context),
    },
    Stage {
        name: "bench-gates",
        about: "instructions an operation, against the repository's numbers",
        work: |context, _| bench_gates(context),
    },
    Stage {
        name: "hil-bochs",
        about: "the image on Bochs",
        work: |context, arguments| machine::run(context, Machine::Bochs, arguments.limits),
    },
    Stage {
        name: "hil-qemu-svm",
        about: "the image on QEMU's emulated SVM",
        work: |context, arguments| machine::run(context, Machine::QemuSvm, arguments.limits),
    },
    Stage {
        name: "hil-kvm",
        about: "the image on QEMU with nested VT-x or SVM",
        work: |context, arguments| machine::run(context, Machine::Kvm, arguments.limits),
    },
    Stage {
        name: "hil-metal",
        about: "the image on a real machine",
        work: |_, _| Ok(machine::metal()),
    },
];

/// One check a target: the corpus, then 6 seconds.
fn fuzz(context: &Context) -> Result<Outcome> {
    use super::fuzz::{Run, TARGETS, build, lacks, run_all};
    if let Some(what) = lacks() {
        return Ok(Outcome::skipped(what));
    }
    let fuzzers = build(context)?;
    let mut outcome = Outcome::default();
    for found in run_all(context, &fuzzers, &TARGETS, Run { seconds: 6, fresh: true })? {
        match found.failure {
            None => outcome.counts.passed += 1,
            Some(failure) => {
                outcome.counts.failed += 1;
                outcome.failures.push(format!("{}: {failure}", found.target));
            }
        }
    }
    Ok(outcome)
}

/// One check an entry point, and one an expected listing.
fn codegen(context: &Context) -> Result<Outcome> {
    if let Some(why) = crate::machine_code::cannot_be_read() {
        return Ok(Outcome::skipped(why));
    }
    let findings = super::codegen::look(context)?;
    let mut outcome = Outcome { failures: findings.failures(), ..Outcome::default() };
    outcome.skips = findings.skips().into_iter().map(Skip::because).collect();
    outcome.counts.failed = outcome.failures.len();
    outcome.counts.skipped = outcome.skips.len();
    outcome.counts.passed = findings.checks() - outcome.counts.failed - outcome.counts.skipped;
    Ok(outcome)
}

/// One million operations; a fixed seed, so that a failure can be met again.
fn oracle_kvm(context: &Context) -> Result<Outcome> {
    let size = oracle::Size { operations: Some(1_000_000), seed: 1 };
    Ok(outcome_of(&oracle::kvm(context, size)?))
}

/// A CI-sized run; a fixed seed, so that a failure can be met again.
fn oracle_apicv_model(context: &Context) -> Result<Outcome> {
    let size = oracle::Size { operations: Some(100_000), seed: 1 };
    Ok(outcome_of(&oracle::apicv_model(context, size)?))
}

/// An oracle is one check.
fn outcome_of(findings: &oracle::Findings) -> Outcome {
    match &findings.skipped {
        Some(why) => Outcome::skipped(why.clone()),
        None if findings.failed() => Outcome::failed(findings.details.join("\n")),
        None => Outcome::passed(),
    }
}

/// One check a row.
fn bench_gates(context: &Context) -> Result<Outcome> {
    let gates = super::bench::check(context)?;
    Ok(match gates.skipped {
        Some(why) => Outcome::skipped(why),
        None => Outcome {
            counts: Counts { passed: gates.passed, failed: gates.failures.len(), skipped: 0 },
            skips: Vec::new(),
            failures: gates.failures,
        },
    })
}

impl Stage {
    pub(crate) fn run(&self, context: &Context, arguments: &TestArgs) -> Done {
        let start = Instant::now();
        let outcome = (self.work)(context, arguments)
            .unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
        Done {
            name: self.name.to_owned(),
            counts: outcome.counts,
            skips: outcome.skips,
            failures: outcome.failures,
            seconds: start.elapsed().as_secs_f64(),
        }
    }
}

impl Outcome {
    /// One check that passed.
    pub(crate) fn passed() -> Self {
        Self { counts: Counts { passed: 1, ..Counts::default() }, ..Self::default() }
    }

    /// One check that failed.
    pub(crate) fn failed(why: String) -> Self {
        let counts = Counts { failed: 1, ..Counts::default() };
        Self { counts, failures: vec![why], ..Self::default() }
    }

    /// One check that could not be made.
    pub(crate) fn skipped(why: String) -> Self {
        let counts = Counts { skipped: 1, ..Counts::default() };
        Self { counts, skips: vec![Skip::because(why)], ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::STAGES;

    #[test]
    fn names_are_unique() {
        for (index, stage) in STAGES.iter().enumerate() {
            assert!(STAGES[..index].iter().all(|other| other.name != stage.name), "{}", stage.name);
        }
    }
}
