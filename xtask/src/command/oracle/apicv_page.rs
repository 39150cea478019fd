//! A guest under the driver on a machine's APICv against plain emulation.

use std::time::Duration;

use anyhow::Result;

use super::{Findings, Size};
use crate::cli::{Machine, Selection};
use crate::command::{Context, hil};
use crate::emulator::{Emulator, Limits};
use crate::report::{Outcome, Report};

const NAME: &str = "apicv-page";

/// The operations of a run that is not told how many to make: of all levels and modes together.
const OPERATIONS: u64 = 200_000;

/// Has the image run the same sequence both ways at every level and in both modes, on Bochs.
pub(crate) fn apicv_page(context: &Context, size: Size) -> Result<Findings> {
    if let Err(error) = Emulator::find(Machine::Bochs, &context.workspace) {
        return Ok(Findings::skip(NAME, format!("{error:#}")));
    }
    // One CPU runs the guest, the other posts to it meanwhile.
    let selection = Selection { cpus: 2, case: Some(NAME.to_owned()) };
    let limits = Limits { wall: Duration::from_secs(3600), stall: Duration::from_secs(600) };
    let seed = size.seed;
    let operations = size.operations.unwrap_or(OPERATIONS);
    let words = format!("seed={seed} operations={operations}");
    let report = hil::run_words(context, Machine::Bochs, &selection, &words, limits)?;
    let skip = report.cases.iter().find(|case| case.result == Outcome::Skip);
    if let (Some(case), true) = (skip, report.oracles.is_empty()) {
        return Ok(Findings::skip(NAME, case.note.clone()));
    }
    let mut findings = total(&report, seed);
    if findings.operations < operations && !findings.failed() {
        findings.details.push(format!("{} of {operations} operations", findings.operations));
    }
    Ok(findings)
}

/// All levels and modes in one row.
fn total(report: &Report, seed: u64) -> Findings {
    let mut total = Findings { oracle: NAME.to_owned(), seed: Some(seed), ..Findings::default() };
    for findings in Findings::of_report(report) {
        total.operations += findings.operations;
        total.comparisons += findings.comparisons;
        total.mismatches += findings.mismatches;
        total.details.extend(findings.details);
        for row in &findings.deviations {
            total.add(&row.row, row.count, &row.reason);
        }
    }
    let failed = report.cases.iter().filter(|case| case.result == Outcome::Fail);
    let failure = |case: &crate::report::Case| {
        format!("{} ({} {}): {}", case.case, case.level, case.mode, case.note)
    };
    total.details.extend(failed.map(failure));
    total.details.extend(report.faults.iter().cloned());
    total
}

#[cfg(test)]
mod tests {
    use super::total;
    use crate::report::Report;

    #[test]
    fn levels_add_up() {
        let mut report = Report::new("bochs");
        for line in [
            "HIL-ORACLE name=apicv-page/vid mode=xapic operations=10 comparisons=20 mismatches=0 note=",
            "HIL-DEVIATION oracle=apicv-page/vid row=Tmr count=2 note=why",
            "HIL-ORACLE name=apicv-page/posted mode=xapic operations=11 comparisons=21 mismatches=1 note=",
            "HIL-DEVIATION oracle=apicv-page/posted row=Tmr count=3 note=why",
            "HIL-MISMATCH oracle=apicv-page/posted seed=5 step=17 note=ISR",
            "HIL-CASE case=apicv-page level=posted mode=xapic result=fail note=mismatches",
        ] {
            report.take_line(line);
        }
        let total = total(&report, 5);
        assert_eq!((total.operations, total.comparisons, total.mismatches), (21, 41, 1));
        assert_eq!(total.deviations.len(), 1);
        assert_eq!(total.deviations[0].count, 5);
        assert_eq!(total.details.len(), 2);
    }
}
