//! `cargo xtask demo`: the upcall story as one table.

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Context, Failed, Verdict, hil};
use crate::cli::{DemoArgs, Machine, Selection};
use crate::emulator::{Emulator, Limits};
use crate::process::run_logged;
use crate::report::{Counts, Outcome, Report, Upcall, Verdict as Row, judge, print_upcalls};

/// Where the story was told, and what was seen.
struct Story {
    stage: String,
    rows: Vec<Upcall>,
    /// What failed beside the rows.
    faults: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &DemoArgs) -> Result<Verdict> {
    let story = if arguments.model {
        on_model(context, "as asked")?
    } else {
        match Emulator::find(Machine::Bochs, &context.workspace) {
            Ok(_) => on_bochs(context, Limits::from(arguments.limits))?,
            Err(error) => on_model(context, &format!("{error:#}"))?,
        }
    };
    let (verdicts, missing) = judge(&story.rows);
    let faults = [missing, story.faults].concat();
    let count =
        |wanted: fn(&Row) -> bool| verdicts.iter().filter(|verdict| wanted(verdict)).count();
    let counts = Counts {
        passed: count(|verdict| matches!(verdict, Row::Pass(_))),
        failed: count(|verdict| matches!(verdict, Row::Fail(_))) + faults.len(),
        skipped: 0,
    };
    let rows: Vec<_> = story
        .rows
        .iter()
        .zip(&verdicts)
        .map(|(row, verdict)| json!({ "row": row, "verdict": verdict }))
        .collect();
    let value = json!({ "stage": story.stage, "rows": rows, "faults": faults, "counts": counts });
    context.print(&value, |out| {
        writeln!(out, "The guest looks for stale IRR bits, enables its APIC through SVR, and counts its upcalls.")?;
        writeln!(out, "Told on {}.", story.stage)?;
        print_upcalls(out, &story.rows, &verdicts)?;
        for fault in &faults {
            writeln!(out, "FAILED: {fault}")?;
        }
        Ok(writeln!(out, "demo: {}", counts.closing_line())?)
    })?;
    Ok(counts.into())
}

fn on_bochs(context: &Context, limits: Limits) -> Result<Story> {
    let selection = Selection { cpus: 2, case: Some("upcall".to_owned()) };
    let report = hil::run_machine(context, Machine::Bochs, &selection, false, limits)?;
    let failed = report.cases.iter().filter(|case| case.result == Outcome::Fail);
    let mut faults: Vec<String> = failed
        .map(|case| format!("case {} ({} {}): {}", case.case, case.level, case.mode, case.note))
        .collect();
    faults.extend(report.faults);
    Ok(Story {
        stage: "Bochs, real guest code on emulated VT-x".to_owned(),
        rows: report.upcalls,
        faults,
    })
}

/// The same story on the software silicon model; `why` there is no emulator.
///
/// A program of its own, so that this one does not need the drivers to compile; it prints the same
/// records as the image.
fn on_model(context: &Context, why: &str) -> Result<Story> {
    let arguments = ["run", "--quiet", "--package", "vlapic-tests", "--example", "upcall_story"];
    let log = context.workspace.logs().join("upcall-story.log");
    let done = run_logged(&mut context.workspace.cargo(&arguments), "silicon model", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(60));
        bail!(Failed(format!("the story on the model failed (whole output: {log}):\n{tail}")));
    }
    let mut report = Report::new("model");
    for line in done.text.lines() {
        report.take_line(line);
    }
    let stage = format!("the software silicon model, not on an emulated machine ({why})");
    Ok(Story { stage, rows: report.upcalls, faults: report.faults })
}
