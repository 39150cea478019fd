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
    let mut report = Report::new(machine.name());
    for part in parts(machine, selection, words) {
        let emulator =
            if part.one_thread { emulator.clone().one_thread() } else { emulator.clone() };
        eprintln!("{}: {}", machine.name(), emulator.describe());
        let (workspace, image) = (&context.workspace, &built.image);
        let fresh = Report::new(machine.name());
        report.add(run_on(workspace, &emulator, image, selection.cpus, &part.line, limits, fresh)?);
    }
    Ok(report)
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

/// One start of the image.
#[derive(Debug, Eq, PartialEq)]
struct Part {
    one_thread: bool,
    line: String,
}

/// What QEMU's SVM gets right only with one thread for all CPUs (see docs/testing.md); all else runs with one each, where
/// races are for real.
const ONE_THREAD: &str = "ipi-storm";

/// The starts that a selection takes.
fn parts(machine: Machine, selection: &Selection, words: &str) -> Vec<Part> {
    let part = |one_thread, case: Option<&str>, words: &str| Part {
        one_thread,
        line: command_line(machine, selection.cpus, case, words),
    };
    let case = selection.case.as_deref();
    let divided = machine == Machine::QemuSvm
        && words.is_empty()
        && case.is_none_or(|case| ONE_THREAD.contains(case));
    if !divided {
        return vec![part(false, case, words)];
    }
    let mut parts = vec![part(true, Some(ONE_THREAD), "one-thread storm=1000")];
    if case != Some(ONE_THREAD) {
        parts.insert(0, part(false, case, &format!("without={ONE_THREAD}")));
    }
    parts
}

/// What the image reads at its start: words with spaces between.
fn command_line(machine: Machine, cpus: u32, case: Option<&str>, more: &str) -> String {
    let mut words = vec![format!("machine={}", machine.name()), format!("cpus={cpus}")];
    words.extend(case.map(|case| format!("case={case}")));
    words.extend(more.split_ascii_whitespace().map(str::to_owned));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Machine, Selection, parts};

    fn lines(machine: Machine, case: Option<&str>, words: &str) -> Vec<(bool, String)> {
        let selection = Selection { cpus: 4, case: case.map(str::to_owned) };
        let parts = parts(machine, &selection, words).into_iter();
        parts.map(|part| (part.one_thread, part.line)).collect()
    }

    #[test]
    fn words() {
        let one = |machine, case, words| lines(machine, case, words).remove(0).1;
        assert_eq!(one(Machine::Bochs, None, "list"), "machine=bochs cpus=4 list");
        assert_eq!(one(Machine::Kvm, Some("upcall"), ""), "machine=kvm cpus=4 case=upcall");
        let line = one(Machine::Bochs, Some("upcall"), "seed=1 operations=2");
        assert_eq!(line, "machine=bochs cpus=4 case=upcall seed=1 operations=2");
    }

    #[test]
    fn storm_has_one_thread_and_nothing_else_has() {
        let storm = "machine=qemu-svm cpus=4 case=ipi-storm one-thread storm=1000".to_owned();
        let rest = |more: &str| format!("machine=qemu-svm cpus=4 {more}without=ipi-storm");
        let all = [(false, rest("")), (true, storm.clone())];
        assert_eq!(lines(Machine::QemuSvm, None, ""), all);
        let some = [(false, rest("case=ipi ")), (true, storm.clone())];
        assert_eq!(lines(Machine::QemuSvm, Some("ipi"), ""), some);
        assert_eq!(lines(Machine::QemuSvm, Some("ipi-storm"), ""), [(true, storm)]);
        let other = [(false, "machine=qemu-svm cpus=4 case=posts".to_owned())];
        assert_eq!(lines(Machine::QemuSvm, Some("posts"), ""), other);
        assert_eq!(lines(Machine::Bochs, None, "").len(), 1);
        assert_eq!(lines(Machine::QemuSvm, None, "list").len(), 1);
    }
}
