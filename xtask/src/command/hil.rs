//! `cargo xtask hil`.

use std::io::Write;

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::{Context, Verdict};
use crate::cli::{HilArgs, Machine, Selection};
use crate::emulator::{Emulator, Limits, run as run_on, watch_metal};
use crate::hil_build;
use crate::report::{Report, print_report};

pub(crate) fn run(context: &Context, arguments: &HilArgs) -> Result<Verdict> {
    let report = match &arguments.serial {
        Some(device) if arguments.machine == Machine::Metal => {
            ensure!(
                arguments.selection.case.is_none() && !arguments.list,
                "a real machine runs what its image was told: use `cargo xtask image --case ...` and write the stick again"
            );
            watch_metal(device, Limits::from(arguments.limits), Report::new("metal"))?
        }
        Some(_) => bail!("--serial goes with --machine metal"),
        None => {
            let limits = Limits::from(arguments.limits);
            run_machine(context, arguments.machine, &arguments.selection, arguments.list, limits)?
        }
    };
    if arguments.list {
        return list(context, &report);
    }
    if report.cases.is_empty() && report.faults.is_empty() {
        let Some(case) = &arguments.selection.case else { bail!("the image ran no case") };
        bail!("no case of the image has '{case}' in its name: `cargo xtask hil --list` shows them");
    }
    let counts = report.counts();
    context.print(&json!({ "report": report, "counts": counts }), |out| {
        print_report(out, &report)?;
        Ok(writeln!(out, "hil on {}: {}", report.machine, counts.closing_line())?)
    })?;
    Ok(counts.into())
}

/// Builds the image and runs it on an emulator.
pub(crate) fn run_machine(
    context: &Context,
    machine: Machine,
    selection: &Selection,
    list: bool,
    limits: Limits,
) -> Result<Report> {
    run_words(context, machine, selection, if list { "list" } else { "" }, limits)
}

/// The same with more words on the image's command line.
pub(crate) fn run_words(
    context: &Context,
    machine: Machine,
    selection: &Selection,
    words: &str,
    limits: Limits,
) -> Result<Report> {
    let emulator = Emulator::find(machine, &context.workspace)?;
    let built = hil_build::build(&context.workspace)?;
    eprintln!("{}: {}", machine.name(), emulator.describe());
    let line = command_line(machine, selection, words);
    let report = Report::new(machine.name());
    run_on(&context.workspace, &emulator, &built.image, selection.cpus, &line, limits, report)
}

fn list(context: &Context, report: &Report) -> Result<Verdict> {
    ensure!(report.faults.is_empty(), "the image gave no list: {}", report.faults.join("; "));
    context.print(&report.listed, |out| {
        for case in &report.listed {
            writeln!(out, "{case}")?;
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

/// What the image reads at its start: words with spaces between.
fn command_line(machine: Machine, selection: &Selection, more: &str) -> String {
    let mut words = vec![format!("machine={}", machine.name()), format!("cpus={}", selection.cpus)];
    words.extend(selection.case.iter().map(|case| format!("case={case}")));
    words.extend(more.split_ascii_whitespace().map(str::to_owned));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Machine, Selection, command_line};

    #[test]
    fn words() {
        let mut selection = Selection { cpus: 4, case: None };
        assert_eq!(command_line(Machine::Bochs, &selection, "list"), "machine=bochs cpus=4 list");
        selection.case = Some("upcall".to_owned());
        assert_eq!(command_line(Machine::Kvm, &selection, ""), "machine=kvm cpus=4 case=upcall");
        let line = command_line(Machine::Bochs, &selection, "seed=1 operations=2");
        assert_eq!(line, "machine=bochs cpus=4 case=upcall seed=1 operations=2");
    }
}
