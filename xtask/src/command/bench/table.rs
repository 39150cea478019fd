//! The table for people.

use std::io::Write;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::image::Operation;
use super::results::{About, Figure, Results, Row};
use crate::command::{Context, Verdict};

pub(super) fn list(context: &Context, rows: &[About]) -> Result<Verdict> {
    context.print(&rows, |out| {
        for row in rows {
            writeln!(out, "{:<32} {}", row.id, row.what)?;
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

/// One line a row, then what the peer leaves out, what was skipped, and how many targets are met.
pub(super) fn write(
    out: &mut impl Write,
    results: &Results,
    before: Option<&Results>,
) -> Result<()> {
    if !results.rows.is_empty() {
        writeln!(out, "{}, {}; nanoseconds an operation, medians", results.cpu, results.rustc)?;
        writeln!(out, "{}", table(results, before))?;
    }
    if results.rows.iter().any(|row| row.kernel.is_some()) {
        writeln!(out, "The kernel's local APIC, one ioctl an operation:\n{}", kernel(results))?;
    }
    if !results.image.is_empty() {
        writeln!(out, "{IMAGE_HEAD}\n{}", image(&results.image))?;
    }
    for remark in remarks(results) {
        writeln!(out, "{remark}")?;
    }
    Ok(())
}

/// The table of the rows, as a document has it.
pub(super) fn markdown(results: &Results) -> String {
    as_markdown(table(results, None))
}

pub(super) fn as_markdown(mut table: Table) -> String {
    table.load_style(presets::ASCII_MARKDOWN).to_string()
}

/// What the peer leaves out, what was skipped, and how many targets are met.
pub(super) fn remarks(results: &Results) -> Vec<String> {
    let notes = notes(results).into_iter().enumerate();
    let mut remarks: Vec<String> =
        notes.map(|(mark, lacks)| format!("({}) the peer: {lacks}", mark + 1)).collect();
    remarks.extend(results.skipped.iter().map(|skipped| format!("skipped: {skipped}")));
    let targets: Vec<_> = results.rows.iter().filter_map(Row::target).collect();
    let met = targets.iter().filter(|(_, met)| *met).count();
    let (rows, targets) = (results.rows.len(), targets.len());
    remarks.push(format!("bench: {rows} rows, {met} of {targets} targets met"));
    remarks
}

fn table(results: &Results, before: Option<&Results>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let mut header = vec![
        "operation",
        "mode",
        "ours",
        "instr.",
        "floor",
        "ns",
        "ratio",
        "target",
        "peer",
        "ratio",
    ];
    if before.is_some() {
        header.extend(["before", "change"]);
    }
    let numbers = [2, 3, 5, 6, 8, 9, 10, 11];
    table.set_header(header);
    let notes = notes(results);
    for row in &results.rows {
        table.add_row(cells(row, &notes, before));
    }
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The rows that the kernel was asked as well.
pub(super) fn kernel(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["operation", "ours", "ioctl", "kernel", "kernel / ours"]);
    for row in &results.rows {
        let Some(kernel) = &row.kernel else { continue };
        table.add_row([
            row.what.clone(),
            nanoseconds(row.ours.median),
            kernel.what.clone(),
            nanoseconds(kernel.median),
            format!("{:.0}", 1.0 / kernel.ratio),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

const IMAGE_HEAD: &str = "VM exits of a guest's operations and, after the slash, the drivers' instructions for all of them from exit to entry:";

/// One row an operation, one column a level.
pub(super) fn image(operations: &[Operation]) -> Table {
    let mut levels: Vec<&str> = Vec::new();
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for operation in operations {
        if !levels.contains(&operation.level.as_str()) {
            levels.push(&operation.level);
        }
        let row = (operation.operation.as_str(), operation.mode.as_str());
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["operation", "mode"].into_iter().chain(levels.iter().copied()));
    for (operation, mode) in rows {
        let at = |level: &&str| {
            let is = |it: &&Operation| {
                (&*it.operation, &*it.mode, &*it.level) == (operation, mode, *level)
            };
            let found = operations.iter().find(is);
            found.map_or_else(String::new, |it| format!("{} / {}", it.exits, it.instructions))
        };
        let cells = [operation.to_owned(), mode.to_owned()];
        table.add_row(cells.into_iter().chain(levels.iter().map(at)));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cells(row: &Row, notes: &[&str], before: Option<&Results>) -> Vec<String> {
    let floor = row.floor.as_ref();
    let mut cells = vec![
        row.what.clone(),
        row.mode.clone(),
        nanoseconds(row.ours.median),
        row.instructions.map_or_else(String::new, |count| format!("{count:.0}")),
        floor.map_or_else(String::new, |floor| floor.what.clone()),
        floor.map_or_else(String::new, |floor| nanoseconds(floor.median)),
        floor.map_or_else(String::new, ratio),
        target(row),
        row.peer.as_ref().map_or_else(String::new, |peer| peer_cost(row, peer, notes)),
        row.peer.as_ref().map_or_else(String::new, ratio),
    ];
    if let Some(before) = before {
        let before = before.row(&row.id);
        cells.push(before.map_or_else(String::new, |before| nanoseconds(before.ours.median)));
        cells.push(before.map_or_else(|| "new".to_owned(), |before| change(row, before)));
    }
    cells
}

/// How much dearer than before, as a multiple of the floor: the machine may have been faster or slower then.
fn change(row: &Row, before: &Row) -> String {
    let times = match (&row.floor, &before.floor) {
        (Some(now), Some(then)) if now.what == then.what => now.ratio / then.ratio,
        _ => row.ours.median / before.ours.median,
    };
    format!("{:+.0} %", 100.0 * (times - 1.0))
}

fn target(row: &Row) -> String {
    row.target().map_or_else(String::new, |(what, met)| {
        format!("{what}: {}", if met { "met" } else { "NOT MET" })
    })
}

fn peer_cost(row: &Row, peer: &Figure, notes: &[&str]) -> String {
    let cost = nanoseconds(peer.median);
    let lacks = row.peer_lacks.as_deref();
    match lacks.and_then(|lacks| notes.iter().position(|note| *note == lacks)) {
        Some(index) => format!("{cost} ({})", index + 1),
        None => cost,
    }
}

/// What the peer leaves out, each once.
fn notes(results: &Results) -> Vec<&str> {
    let mut notes: Vec<&str> = Vec::new();
    for row in &results.rows {
        if let Some(lacks) = row.peer_lacks.as_deref().filter(|_| row.peer.is_some())
            && !notes.contains(&lacks)
        {
            notes.push(lacks);
        }
    }
    notes
}

fn ratio(figure: &Figure) -> String {
    format!("{:.2}", figure.ratio)
}

fn nanoseconds(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
