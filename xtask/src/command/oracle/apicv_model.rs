//! The APICv of a machine against our model of it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Findings, Size};
use crate::cli::{Machine, Selection};
use crate::command::{Context, Failed, hil};
use crate::emulator::{Emulator, Limits};
use crate::process::run_logged;
use crate::report::{Outcome, Report};

const NAME: &str = "apicv-model";

/// The operations of a run that is not told how many to make.
const OPERATIONS: u64 = 200_000;

/// Has the image carry out sequences on Bochs and compares what it observed with the model.
pub(crate) fn apicv_model(context: &Context, size: Size) -> Result<Findings> {
    if let Err(error) = Emulator::find(Machine::Bochs, &context.workspace) {
        return Ok(Findings::skip(NAME, format!("{error:#}")));
    }
    let seed = size.seed;
    let operations = size.operations.unwrap_or(OPERATIONS);
    let report = image(context, &format!("seed={seed} operations={operations}"))?;
    if let Some(case) = report.cases.iter().find(|case| case.result == Outcome::Skip) {
        return Ok(Findings::skip(NAME, case.note.clone()));
    }
    let mut findings = compare(context, size, &report, &[])?;
    let failed = report.cases.iter().filter(|case| case.result == Outcome::Fail);
    findings.details.extend(failed.map(|case| format!("{}: {}", case.case, case.note)));
    findings.details.extend(report.faults.iter().cloned());
    if findings.operations < operations {
        findings.details.push(format!("{} of {operations} operations", findings.operations));
    }
    let first = findings.details.iter().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "batch")
            .then(|| Some((words.next()?.to_owned(), words.next()?.to_owned())))?
    });
    if let Some((setup, batch)) = first {
        let report = image(context, &format!("seed={seed} setup={setup} batch={batch}"))?;
        let steps = compare(context, size, &report, &[&setup, &batch])?;
        findings.details.extend(steps.details);
    }
    Ok(findings)
}

/// One run of the image.
fn image(context: &Context, words: &str) -> Result<Report> {
    let selection = Selection { cpus: 1, case: Some(NAME.to_owned()) };
    let limits = Limits { wall: Duration::from_secs(3600), stall: Duration::from_secs(180) };
    hil::run_words(context, Machine::Bochs, &selection, words, limits)
}

/// Runs the program with the model on the image's lines.
fn compare(context: &Context, size: Size, report: &Report, batch: &[&str]) -> Result<Findings> {
    let logs = context.workspace.logs();
    fs::create_dir_all(&logs)?;
    let lines = logs.join("oracle-apicv-model.lines");
    fs::write(&lines, report.observed.join("\n")).context("cannot keep the image's lines")?;
    let (path, seed) = (lines.to_string_lossy(), size.seed.to_string());
    let mut arguments =
        vec!["run", "--quiet", "--release", "--package", "vlapic-tests", "--example"];
    arguments.extend(["oracle_apicv", "--", &path, &seed]);
    arguments.extend(batch);
    let log = logs.join("oracle-apicv-model.log");
    let done = run_logged(&mut context.workspace.cargo(&arguments), "oracle apicv-model", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(30));
        bail!(Failed(format!("the model could not be asked (whole output: {log}):\n{tail}")));
    }
    Findings::of_text(NAME, size.seed, &done.text)
}
