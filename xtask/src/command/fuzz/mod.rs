//! `cargo xtask fuzz`: hostile input.

mod build;
mod corpus;
mod target;

use std::io::Write;

use anyhow::{Result, ensure};
use comfy_table::{Table, presets};

use super::{Context, Verdict};
use crate::cli::FuzzArgs;

pub(crate) use build::{Fuzzers, build, lacks};
pub(crate) use target::{Found, Run, TARGETS};

pub(crate) fn run(context: &Context, arguments: &FuzzArgs) -> Result<Verdict> {
    let wanted = |name: &&&str| arguments.target.as_deref().is_none_or(|target| target == **name);
    let targets: Vec<&str> = TARGETS.iter().filter(wanted).copied().collect();
    ensure!(!targets.is_empty(), "no such target; there are: {}", TARGETS.join(", "));
    if let Some(what) = lacks() {
        anyhow::bail!("{what}");
    }
    let fuzzers = build(context)?;
    if arguments.minimise {
        for target in targets {
            let (inputs, bytes) = corpus::minimise(context, &fuzzers, target)?;
            eprintln!("{target}: {inputs} inputs, {bytes} bytes");
        }
        return Ok(Verdict::Passed);
    }
    let run = Run { seconds: arguments.seconds, fresh: false };
    let found = run_all(context, &fuzzers, &targets, run)?;
    context.print(&found, |out| write_found(out, &found))?;
    let clean = found.iter().all(|found| found.failure.is_none());
    Ok(if clean { Verdict::Passed } else { Verdict::Failed })
}

/// Two targets at a time.
pub(crate) fn run_all(
    context: &Context,
    fuzzers: &Fuzzers,
    targets: &[&str],
    run: Run,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for pair in targets.chunks(2) {
        let both: Vec<Result<Found>> = std::thread::scope(|scope| {
            let runs: Vec<_> = pair
                .iter()
                .map(|name| scope.spawn(|| target::run(context, fuzzers, name, run)))
                .collect();
            let join = |run: std::thread::ScopedJoinHandle<'_, Result<Found>>| {
                run.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of ours failed")))
            };
            runs.into_iter().map(join).collect()
        });
        for one in both {
            found.push(one?);
        }
    }
    Ok(found)
}

fn write_found(out: &mut impl Write, found: &[Found]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["target", "corpus", "inputs run", "coverage", "result"]);
    for one in found {
        let result = if one.failure.is_some() { "FAILED" } else { "clean" };
        let numbers = [one.corpus, one.inputs, one.coverage].map(|number| number.to_string());
        let [corpus, inputs, coverage] = numbers;
        table.add_row([one.target, &corpus, &inputs, &coverage, result]);
    }
    writeln!(out, "{table}")?;
    for one in found {
        if let Some(failure) = &one.failure {
            writeln!(out, "FAILED {}: {failure}", one.target)?;
        }
    }
    Ok(())
}
