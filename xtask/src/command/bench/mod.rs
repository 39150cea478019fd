//! `cargo xtask bench`: what the drivers cost, beside floors and peers.

mod chart;
mod counts;
mod document;
mod gates;
mod image;
mod program;
mod results;
mod saved;
mod table;

use anyhow::{Result, ensure};

use super::{Context, Verdict};
use crate::cli::BenchArgs;
use crate::progress::Steps;
use crate::workspace::Workspace;

pub(crate) use gates::check;
use program::Program;
use results::{Line, Results};

pub(crate) fn run(context: &Context, arguments: &BenchArgs) -> Result<Verdict> {
    let workspace = &context.workspace;
    let program = program::build(workspace)?;
    if arguments.bless {
        return gates::bless(context, &program);
    }
    let before = arguments.against.as_deref().map(|name| saved::load(workspace, name));
    let before = before.transpose()?;
    let filter = arguments.filter.as_str();
    let about = program.list(filter)?;
    let with_image = IMAGE.contains(filter);
    ensure!(
        !about.is_empty() || with_image,
        "no row has '{filter}' in its name: `cargo xtask bench --list` shows them"
    );
    if arguments.list {
        return table::list(context, &about);
    }
    let mut results = Results::of_this_machine();
    if !about.is_empty() {
        measure(context, arguments, &program, about.len() as u64, &mut results)?;
    }
    if with_image {
        match image::run(context, arguments.limits.into()) {
            Ok(operations) => results.image = operations,
            Err(why) => results.skipped.push(format!("the image on Bochs: {why}")),
        }
    }
    keep(workspace, "last", &results)?;
    if let Some(name) = &arguments.save {
        keep(workspace, name, &results)?;
    }
    if arguments.document {
        document::write(workspace, &results)?;
    }
    context.print(&results, |out| table::write(out, &results, before.as_ref()))?;
    eprintln!("written: {}, and charts beside it", saved::path(workspace, "last").display());
    Ok(Verdict::Passed)
}

/// What `--filter` calls the part that runs the image.
const IMAGE: &str = "image";

/// Times the rows and counts their instructions.
fn measure(
    context: &Context,
    arguments: &BenchArgs,
    program: &Program,
    rows: u64,
    results: &mut Results,
) -> Result<()> {
    let mut steps = Steps::start("bench", rows);
    program.time(&arguments.filter, arguments.budget, |line| match line {
        Line::Skipped { skipped } => results.skipped.push(skipped),
        Line::Row(row) => {
            steps.done(&row.id);
            results.rows.push(*row);
        }
    })?;
    drop(steps);
    match counts::count(&context.workspace, program, &arguments.filter)? {
        counts::Counted::Rows(rows) => results.add_counts(&rows),
        counts::Counted::Skipped(why) => results.skipped.push(format!("instruction counts: {why}")),
    }
    Ok(())
}

/// Writes the run and its charts.
fn keep(workspace: &Workspace, name: &str, results: &Results) -> Result<()> {
    saved::write(workspace, name, results)?;
    chart::rows(results, &workspace.bench().join(format!("{name}.svg")))?;
    chart::curves(results, &workspace.bench().join(format!("{name}-routing.svg")))
}
