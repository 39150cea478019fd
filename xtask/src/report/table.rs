//! Tables for people.

use std::io::Write;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::upcall::{Told, Verdict, word};
use super::{Outcome, Report};
use crate::command::oracle::{Findings, write_findings};
use crate::command::stage::Done;
use crate::report::parse::Who;

/// All of a run: cases, exits per operation, detected emulator bugs, faults.
pub(crate) fn print_report(out: &mut impl Write, report: &Report) -> Result<()> {
    if let Some(begin) = &report.begin {
        writeln!(
            out,
            "{}: {} CPUs, {}, {}",
            begin.machine, begin.cpus, begin.vendor, begin.features
        )?;
    }
    if !report.cases.is_empty() {
        write_cases(out, report)?;
    }
    if !report.upcalls.is_empty() {
        let (verdicts, _) = super::judge(&report.upcalls, &[]);
        let told = |(row, verdict)| Told { processor: None, row, verdict };
        let rows: Vec<_> = report.upcalls.iter().zip(&verdicts).map(told).collect();
        print_upcalls(out, &rows)?;
    }
    if !report.exits.is_empty() {
        write_exits(out, report)?;
    }
    if !report.oracles.is_empty() {
        write_findings(out, &Findings::of_report(report))?;
    }
    for bug in &report.bugs {
        writeln!(out, "emulator bug {}: {}", bug.name, bug.note)?;
    }
    for fault in &report.faults {
        writeln!(out, "FAILED: {fault}")?;
    }
    Ok(())
}

/// One row a case.
fn write_cases(out: &mut impl Write, report: &Report) -> Result<()> {
    let mut table = table(&["case", "level", "mode", "result", "note"]);
    for case in &report.cases {
        let result = match case.result {
            Outcome::Pass => "pass",
            Outcome::Fail => "FAIL",
            Outcome::Skip => "skip",
        };
        table.add_row([&*case.case, &*case.level, &*case.mode, result, &*case.note]);
    }
    Ok(writeln!(out, "{table}")?)
}

/// The upcall story, one row for each way and each of driver and contrast. The first column is the
/// processor, if the rows name any.
pub(crate) fn print_upcalls(out: &mut impl Write, rows: &[Told<'_>]) -> Result<()> {
    let heads = [
        "processor",
        "SVR is written",
        "who",
        "mode",
        "IRR clean while disabled",
        "upcalls expected",
        "seen",
        "exits",
        "verdict",
    ];
    let first = usize::from(rows.iter().all(|told| told.processor.is_none()));
    let mut table = table(&heads[first..]);
    align_right(&mut table, 5 - first..8 - first);
    for Told { processor, row, verdict } in rows {
        let way = match row.way.as_str() {
            "emulated" => "by emulation (an exit for the access)",
            "apic-write" => "by APIC-write exit",
            "avic-trap" => "by AVIC's trap (exit 402)",
            "silent" => "silently (no exit)",
            "silent-disable" => "silently off, event, silently on",
            other => other,
        };
        let who = match row.who {
            Who::Driver => "driver",
            Who::Contrast => "cached flag (contrast)",
        };
        let verdict = match verdict {
            Verdict::Pass("right") => "right".to_owned(),
            Verdict::Pass(why) => format!("{} ({why})", word(row.result)),
            Verdict::Shown => format!("{} (shown only)", word(row.result)),
            Verdict::Fail(why) => format!("FAIL: {why}"),
        };
        let clean = if row.irr_clean { "yes" } else { "no" };
        let [expected, seen, exits] =
            [row.expected, row.seen, row.exits].map(|number| number.to_string());
        let processor = processor.unwrap_or_default();
        let cells = [processor, way, who, &row.mode, clean, &expected, &seen, &exits, &verdict];
        table.add_row(&cells[first..]);
    }
    Ok(writeln!(out, "{table}")?)
}

/// One row a stage of `cargo xtask test`.
pub(crate) fn print_stages(out: &mut impl Write, stages: &[Done]) -> Result<()> {
    let mut table = table(&["stage", "passed", "failed", "skipped", "seconds"]);
    align_right(&mut table, 1..5);
    for stage in stages {
        let counts = stage.counts;
        let numbers =
            [counts.passed, counts.failed, counts.skipped].map(|number| number.to_string());
        let seconds = format!("{:.1}", stage.seconds);
        let [passed, failed, skipped] = numbers;
        table.add_row([stage.name.as_str(), &passed, &failed, &skipped, &seconds]);
    }
    Ok(writeln!(out, "{table}")?)
}

fn write_exits(out: &mut impl Write, report: &Report) -> Result<()> {
    let mut table = table(&["operation", "level", "mode", "operations", "VM exits", "must be"]);
    align_right(&mut table, 3..6);
    for row in &report.exits {
        let expect = match row.expect {
            None => "-".to_owned(),
            Some(expect) if expect == row.count => expect.to_string(),
            Some(expect) => format!("{expect} FAIL"),
        };
        let [per, count] = [row.per, row.count].map(|number| number.to_string());
        table.add_row([&*row.op, &*row.level, &*row.mode, &*per, &*count, &*expect]);
    }
    Ok(writeln!(out, "{table}")?)
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(heads);
    table
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
