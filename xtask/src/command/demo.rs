//! `cargo xtask demo`: the upcall story as one table, told on both vendors' processors.

use std::io::Write;
use std::thread;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Context, Failed, Verdict, hil};
use crate::cli::{DemoArgs, Machine, Selection};
use crate::emulator::{Emulator, Limits};
use crate::process::run_logged;
use crate::report::{Counts, Outcome, Report, Told, Upcall, Verdict as Row, judge, print_upcalls};

/// One processor of the table.
struct Part {
    /// As the table names it.
    processor: &'static str,
    /// The same with the processor's name for `upcall_story`.
    model: (&'static str, &'static str),
    /// The emulator that has such a processor, if any has.
    machine: Option<Machine>,
    /// The ways of writing SVR that must be there.
    ways: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part {
        processor: "Intel VT-x (Bochs)",
        model: ("Intel VT-x (model)", "apicv"),
        machine: Some(Machine::Bochs),
        ways: &["emulated", "apic-write", "silent"],
    },
    Part {
        processor: "AMD SVM (QEMU)",
        model: ("AMD SVM (model)", "svm"),
        machine: Some(Machine::QemuSvm),
        ways: &["emulated", "silent"],
    },
    Part {
        processor: "AMD AVIC (model)",
        model: ("AMD AVIC (model)", "avic"),
        machine: None,
        ways: &["emulated", "avic-trap", "silent"],
    },
];

/// A part that was told: what was seen, and what failed beside the rows.
struct Story {
    processor: &'static str,
    /// What it ran on, in words.
    stage: String,
    rows: Vec<Upcall>,
    verdicts: Vec<Row>,
    faults: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &DemoArgs) -> Result<Verdict> {
    let stories = tell_all(context, arguments)?;
    let faults: Vec<&String> = stories.iter().flat_map(|story| &story.faults).collect();
    let verdicts = || stories.iter().flat_map(|story| &story.verdicts);
    let counts = Counts {
        passed: verdicts().filter(|verdict| matches!(verdict, Row::Pass(_))).count(),
        failed: verdicts().filter(|verdict| matches!(verdict, Row::Fail(_))).count() + faults.len(),
        skipped: 0,
    };
    let rows: Vec<Told<'_>> = stories.iter().flat_map(Story::rows).collect();
    let stages: Vec<_> = stories.iter().map(|story| (story.processor, &story.stage)).collect();
    let value = json!({ "stages": stages, "rows": rows, "faults": faults, "counts": counts });
    context.print(&value, |out| {
        writeln!(out, "The guest looks for stale IRR bits, enables its APIC through SVR, and counts its upcalls.")?;
        print_upcalls(out, &rows)?;
        for (processor, stage) in &stages {
            writeln!(out, "{processor}: {stage}")?;
        }
        for fault in &faults {
            writeln!(out, "FAILED: {fault}")?;
        }
        Ok(writeln!(out, "demo: {}", counts.closing_line())?)
    })?;
    Ok(counts.into())
}

/// What needs no emulator is built and run while the emulators do their part.
fn tell_all(context: &Context, arguments: &DemoArgs) -> Result<Vec<Story>> {
    let told = thread::scope(|scope| {
        let (modelled, emulated): (Vec<_>, Vec<_>) =
            PARTS.iter().partition(|part| part.machine.is_none());
        let models = scope.spawn(move || {
            let why = "no emulator has AVIC";
            modelled.into_iter().map(|part| on_model(context, part, why)).collect::<Vec<_>>()
        });
        let mut told: Vec<_> =
            emulated.into_iter().map(|part| on_emulator(context, part, arguments)).collect();
        told.extend(models.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        told
    });
    told.into_iter().collect()
}

fn on_emulator(context: &Context, part: &Part, arguments: &DemoArgs) -> Result<Story> {
    let Some(machine) = part.machine.filter(|_| !arguments.model) else {
        return on_model(context, part, "as asked");
    };
    if let Err(error) = Emulator::find(machine, &context.workspace) {
        return on_model(context, part, &format!("{error:#}"));
    }
    let selection = Selection { cpus: 2, case: Some("upcall".to_owned()) };
    let limits = Limits::from(arguments.limits);
    let report = hil::run_machine(context, machine, &selection, false, limits)?;
    let failed = report.cases.iter().filter(|case| case.result == Outcome::Fail);
    let mut faults: Vec<String> = failed
        .map(|case| format!("case {} ({} {}): {}", case.case, case.level, case.mode, case.note))
        .collect();
    faults.extend(report.faults);
    let stage = format!("real guest code on {}, fully emulated", machine.title());
    Ok(Story::judged(part.processor, stage, part.ways, report.upcalls, faults))
}

/// The same story on the software silicon model; `why` there is no emulator.
///
/// A program of its own, so that this one does not need the drivers to compile; it prints the same
/// records as the image.
fn on_model(context: &Context, part: &Part, why: &str) -> Result<Story> {
    let (processor, name) = part.model;
    let arguments =
        ["run", "--quiet", "--package", "vlapic-tests", "--example", "upcall_story", "--", name];
    let log = context.workspace.logs().join(format!("upcall-story-{name}.log"));
    let done = run_logged(&mut context.workspace.cargo(&arguments), "silicon model", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(60));
        bail!(Failed(format!("the story on the model failed (whole output: {log}):\n{tail}")));
    }
    let mut report = Report::new("model");
    for line in done.text.lines() {
        report.take_line(line);
    }
    let stage = format!("a software model of the processor, not an emulated machine ({why})");
    Ok(Story::judged(processor, stage, part.ways, report.upcalls, report.faults))
}

impl Story {
    fn judged(
        processor: &'static str,
        stage: String,
        ways: &[&str],
        rows: Vec<Upcall>,
        mut faults: Vec<String>,
    ) -> Self {
        let (verdicts, missing) = judge(&rows, ways);
        faults.extend(missing);
        for fault in &mut faults {
            fault.insert_str(0, &format!("{processor}: "));
        }
        Self { processor, stage, rows, verdicts, faults }
    }

    fn rows(&self) -> impl Iterator<Item = Told<'_>> {
        let row = |(row, verdict)| Told { processor: Some(self.processor), row, verdict };
        self.rows.iter().zip(&self.verdicts).map(row)
    }
}
