//! What an oracle said, in one shape for all of them.

use std::io::Write;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::report::Report;

/// What a run of an oracle found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct Findings {
    pub(crate) oracle: String,
    pub(crate) seed: Option<u64>,
    /// Why it could not be asked.
    pub(crate) skipped: Option<String>,
    pub(crate) operations: u64,
    pub(crate) comparisons: u64,
    pub(crate) deviations: Vec<Deviation>,
    /// How often something differed that should not.
    pub(crate) mismatches: u64,
    /// The first of them: the operations that are needed, and what.
    pub(crate) details: Vec<String>,
}

/// A known deviation of the oracle from the architecture.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Deviation {
    pub(crate) row: String,
    pub(crate) count: u64,
    pub(crate) reason: String,
}

impl Findings {
    pub(crate) const fn failed(&self) -> bool {
        self.mismatches != 0 || !self.details.is_empty()
    }

    pub(crate) fn skip(oracle: &str, why: String) -> Self {
        Self { oracle: oracle.to_owned(), skipped: Some(why), ..Self::default() }
    }

    /// Reads what a program on this machine prints: `operations N`, `comparisons N`,
    /// `deviation NAME COUNT REASON`, `mismatches N`, lines that begin with a space for details, or
    /// `SKIPPED WHY`.
    pub(crate) fn of_text(oracle: &str, seed: u64, text: &str) -> Result<Self> {
        let mut findings = Self { oracle: oracle.to_owned(), seed: Some(seed), ..Self::default() };
        let number = |word: &str| word.parse().with_context(|| format!("not a number: {word}"));
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("SKIPPED", why)) => findings.skipped = Some(why.to_owned()),
                Some(("operations", count)) => findings.operations = number(count)?,
                Some(("comparisons", count)) => findings.comparisons = number(count)?,
                Some(("mismatches", count)) => findings.mismatches = number(count)?,
                Some(("deviation", rest)) => {
                    let mut words = rest.splitn(3, ' ').map(str::to_owned);
                    if let (Some(row), Some(count), Some(reason)) =
                        (words.next(), words.next(), words.next())
                    {
                        findings.deviations.push(Deviation { row, count: number(&count)?, reason });
                    }
                }
                Some(("", detail)) => findings.details.push(detail.trim_end().to_owned()),
                _ => {}
            }
        }
        Ok(findings)
    }

    /// What the oracles in the image reported, one for each name and mode.
    ///
    /// Deviations and mismatches carry no mode: they stand with the first of their name.
    pub(crate) fn of_report(report: &Report) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        for record in &report.oracles {
            let name = format!("{} {} {}", record.name, report.machine, record.mode);
            let mut findings = Self {
                oracle: name,
                operations: record.operations,
                comparisons: record.comparisons,
                mismatches: record.mismatches,
                ..Self::default()
            };
            if !seen.contains(&&*record.name) {
                seen.push(&record.name);
                let deviations = report.deviations.iter().filter(|row| row.oracle == record.name);
                for row in deviations {
                    findings.add(&row.row, row.count, &row.note);
                }
                for row in report.mismatches.iter().filter(|row| row.oracle == record.name) {
                    findings.seed = Some(row.seed);
                    findings
                        .details
                        .push(format!("seed {} step {}: {}", row.seed, row.step, row.note));
                }
            }
            all.push(findings);
        }
        all
    }

    /// Counts of one row add up: the image reports each mode by itself.
    pub(super) fn add(&mut self, row: &str, count: u64, reason: &str) {
        match self.deviations.iter_mut().find(|known| known.row == row) {
            Some(known) => known.count += count,
            None => self.deviations.push(Deviation {
                row: row.to_owned(),
                count,
                reason: reason.to_owned(),
            }),
        }
    }
}

/// One table for all, then what was skipped and what differed.
pub(crate) fn write_findings(out: &mut impl Write, all: &[Findings]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "oracle",
        "operations",
        "comparisons",
        "mismatches",
        "known deviation",
        "count",
        "why it is none of ours",
    ]);
    for column in [1, 2, 3, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for findings in all.iter().filter(|one| one.skipped.is_none()) {
        let name = match findings.seed {
            Some(seed) => format!("{}, seed {seed}", findings.oracle),
            None => findings.oracle.clone(),
        };
        let counts = [findings.operations, findings.comparisons, findings.mismatches];
        let [operations, comparisons, mismatches] = counts.map(|count| count.to_string());
        let mut totals = [name, operations, comparisons, mismatches];
        let none = Deviation { row: String::new(), count: 0, reason: String::new() };
        let rows = if findings.deviations.is_empty() { &[none] } else { &*findings.deviations };
        for deviation in rows {
            let count =
                if deviation.row.is_empty() { String::new() } else { deviation.count.to_string() };
            let deviation = [deviation.row.clone(), count, deviation.reason.clone()];
            table.add_row(std::mem::take(&mut totals).into_iter().chain(deviation));
        }
    }
    if !table.is_empty() {
        writeln!(out, "{table}")?;
    }
    for findings in all {
        if let Some(why) = &findings.skipped {
            writeln!(out, "skipped oracle {}: {why}", findings.oracle)?;
        }
        for line in &findings.details {
            writeln!(out, "FAILED {}: {line}", findings.oracle)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Deviation, Findings, write_findings};
    use crate::report::Report;

    #[test]
    fn reads_a_run() {
        let text = "operations 12\ncomparisons 345\ndeviation NoErrors 3 KVM records none\nmismatches 1\n  Take { vcpu: 0 }\n  Fault { ours: true }\n";
        let findings = Findings::of_text("kvm", 7, text).unwrap();
        assert_eq!((findings.operations, findings.comparisons), (12, 345));
        let row = Deviation {
            row: "NoErrors".to_owned(),
            count: 3,
            reason: "KVM records none".to_owned(),
        };
        assert_eq!(findings.deviations, [row]);
        assert_eq!(findings.mismatches, 1);
        assert_eq!(findings.details, [" Take { vcpu: 0 }", " Fault { ours: true }"]);
        assert_eq!(findings.skipped, None);
        assert!(findings.failed());
    }

    #[test]
    fn reads_a_skip() {
        let findings = Findings::of_text("kvm", 1, "SKIPPED /dev/kvm cannot be opened\n").unwrap();
        assert_eq!(findings.skipped.as_deref(), Some("/dev/kvm cannot be opened"));
        assert!(Findings::of_text("kvm", 1, "operations many\n").is_err());
    }

    fn report() -> Report {
        let mut report = Report::new("bochs");
        for line in [
            "HIL-ORACLE name=native mode=xapic operations=10 comparisons=20 mismatches=0 note=",
            "HIL-ORACLE name=native mode=x2apic operations=11 comparisons=21 mismatches=1 note=",
            "HIL-DEVIATION oracle=native row=Apr count=2 note=SDM 10.4.1: none",
            "HIL-DEVIATION oracle=native row=Apr count=3 note=SDM 10.4.1: none",
            "HIL-DEVIATION oracle=other row=Apr count=9 note=",
            "HIL-MISMATCH oracle=native seed=5 step=17 note=ISR is not 0",
        ] {
            report.take_line(line);
        }
        report
    }

    #[test]
    fn reads_the_images_records() {
        let report = report();
        assert!(report.faults.is_empty(), "{:?}", report.faults);
        let all = Findings::of_report(&report);
        let names: Vec<_> = all.iter().map(|one| one.oracle.as_str()).collect();
        assert_eq!(names, ["native bochs xapic", "native bochs x2apic"]);
        assert_eq!(all[0].deviations.len(), 1);
        assert_eq!(all[0].deviations[0].count, 5);
        assert_eq!(all[0].details, ["seed 5 step 17: ISR is not 0"]);
        assert_eq!((all[1].operations, all[1].comparisons, all[1].mismatches), (11, 21, 1));
        assert!(all[1].deviations.is_empty());
    }

    #[test]
    fn everything_is_shown() {
        let mut all = Findings::of_report(&report());
        all.push(Findings::skip("kvm", "no /dev/kvm".to_owned()));
        let mut out = Vec::new();
        write_findings(&mut out, &all).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "native bochs xapic, seed 5",
            "SDM 10.4.1: none",
            "skipped oracle kvm: no /dev/kvm",
            "FAILED native bochs xapic: seed 5 step 17: ISR is not 0",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
