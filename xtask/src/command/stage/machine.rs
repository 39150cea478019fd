//! The stages that boot the image.

use anyhow::Result;

use super::Outcome;
use crate::cli::{LimitArgs, Machine, Selection};
use crate::command::{Context, hil};
use crate::emulator::Emulator;
use crate::report::{self, Report, Skip, print_report};

pub(super) fn run(context: &Context, machine: Machine, limits: LimitArgs) -> Result<Outcome> {
    // Looked for before anything is built: that there is no such machine here is a skip, not a failure.
    if let Err(error) = Emulator::find(machine, &context.workspace) {
        return Ok(Outcome::skipped(format!("all cases on {}: {error:#}", machine.name())));
    }
    let selection = Selection { cpus: 4, case: None };
    let mut report = hil::run_machine(context, machine, &selection, false, limits.into())?;
    if report.cases.is_empty() && report.faults.is_empty() {
        report.faults.push("the image ran no case".to_owned());
    }
    print_report(&mut std::io::stderr(), &report)?;
    Ok(outcome(&report))
}

/// Nobody can boot a real machine from here.
pub(super) fn metal() -> Outcome {
    Outcome::skipped(
        "all cases on metal: needs a PC booted by hand, see `cargo xtask image` and `cargo xtask hil --machine metal`".to_owned(),
    )
}

fn outcome(report: &Report) -> Outcome {
    let with = |wanted| report.cases.iter().filter(move |case| case.result == wanted);
    let setting = |case: &report::Case| format!("{} {}", case.level, case.mode);
    let failure = |case: &report::Case| format!("{} ({}): {}", case.case, setting(case), case.note);
    let mut failures: Vec<String> = with(report::Outcome::Fail).map(failure).collect();
    failures.extend(report.faults.iter().cloned());
    let skip = |case: &report::Case| Skip {
        name: Some(case.case.clone()),
        setting: Some(setting(case)),
        why: case.note.clone(),
    };
    let skips = with(report::Outcome::Skip).map(skip).collect();
    Outcome { counts: report.counts(), skips, failures }
}

#[cfg(test)]
mod tests {
    use super::outcome;
    use crate::report::{End, Report};

    #[test]
    fn every_skip_and_failure_is_named() {
        let mut report = Report::new("bochs");
        report
            .take_line("HIL-BEGIN version=1 machine=bochs vendor=GenuineIntel cpus=2 features=vmx");
        report.take_line("HIL-CASE case=a level=vid mode=xapic result=skip note=no VT-x");
        report.take_line("HIL-CASE case=b level=vid mode=xapic result=fail note=late");
        report.finish(&End::Exit(1));
        let outcome = outcome(&report);
        let [skip] = &outcome.skips[..] else { panic!("one skip") };
        assert_eq!((skip.name.as_deref(), skip.setting.as_deref()), (Some("a"), Some("vid xapic")));
        assert_eq!(skip.why, "no VT-x");
        assert_eq!(outcome.failures, ["b (vid xapic): late"]);
        assert_eq!((outcome.counts.failed, outcome.counts.skipped), (1, 1));
    }
}
