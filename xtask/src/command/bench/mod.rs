//! `cargo xtask bench`: what the drivers cost, beside floors and peers.

mod counts;
mod gates;
mod program;
mod results;
mod saved;
mod table;

use anyhow::{Result, ensure};

use super::{Context, Verdict};
use crate::cli::BenchArgs;
use crate::progress::Steps;

pub(crate) use gates::check;
use results::{Line, Results};

pub(crate) fn run(context: &Context, arguments: &BenchArgs) -> Result<Verdict> {
    let workspace = &context.workspace;
    let program = program::build(workspace)?;
    if arguments.bless {
        return gates::bless(context, &program);
    }
    let before = arguments.against.as_deref().map(|name| saved::load(workspace, name));
    let before = before.transpose()?;
    let about = program.list(&arguments.filter)?;
    ensure!(
        !about.is_empty(),
        "no row has '{}' in its name: `cargo xtask bench --list` shows them",
        arguments.filter
    );
    if arguments.list {
        return table::list(context, &about);
    }
    let mut results = Results::of_this_machine();
    let mut steps = Steps::start("bench", about.len() as u64);
    program.time(&arguments.filter, arguments.budget, |line| match line {
        Line::Skipped { skipped } => results.skipped.push(skipped),
        Line::Row(row) => {
            steps.done(&row.id);
            results.rows.push(*row);
        }
    })?;
    drop(steps);
    match counts::count(workspace, &program, &arguments.filter)? {
        counts::Counted::Rows(rows) => results.add_counts(&rows),
        counts::Counted::Skipped(why) => results.skipped.push(format!("instruction counts: {why}")),
    }
    saved::write(workspace, "last", &results)?;
    if let Some(name) = &arguments.save {
        saved::write(workspace, name, &results)?;
    }
    context.print(&results, |out| table::write(out, &results, before.as_ref()))?;
    eprintln!("written: {}", saved::path(workspace, "last").display());
    Ok(Verdict::Passed)
}
