//! `cargo xtask test`.

use std::io::Write;

use anyhow::{Result, ensure};
use serde_json::json;

use super::stage::{Done, STAGES, Stage};
use super::{Context, Verdict};
use crate::cli::TestArgs;
use crate::report::{Counts, print_skips, print_stages};

pub(crate) fn run(context: &Context, arguments: &TestArgs) -> Result<Verdict> {
    if arguments.list {
        return list(context);
    }
    let wanted = |stage: &&Stage| {
        arguments.stage.as_ref().is_none_or(|text| stage.name.contains(text.as_str()))
    };
    let stages: Vec<&Stage> = STAGES.iter().filter(wanted).collect();
    ensure!(!stages.is_empty(), "no stage of that name: `cargo xtask test --list` shows them");
    let mut done = Vec::new();
    for stage in stages {
        eprintln!("== {}: {}", stage.name, stage.about);
        let result = stage.run(context, arguments);
        for failure in &result.failures {
            eprintln!("FAILED {}: {failure}", stage.name);
        }
        done.push(result);
    }
    summary(context, &done)
}

fn summary(context: &Context, stages: &[Done]) -> Result<Verdict> {
    let mut counts = Counts::default();
    for stage in stages {
        counts.add(stage.counts);
    }
    context.print(&json!({ "stages": stages, "counts": counts }), |out| {
        print_stages(out, stages)?;
        for stage in stages {
            print_skips(out, &stage.name, &stage.skips)?;
        }
        // Whole, and beside the closing line.
        for stage in stages {
            for failure in &stage.failures {
                writeln!(out, "FAILED {}: {failure}", stage.name)?;
            }
        }
        Ok(writeln!(out, "{}", counts.closing_line())?)
    })?;
    Ok(counts.into())
}

fn list(context: &Context) -> Result<Verdict> {
    let names: Vec<_> =
        STAGES.iter().map(|stage| json!({ "name": stage.name, "about": stage.about })).collect();
    context.print(&names, |out| {
        for stage in STAGES {
            writeln!(out, "{:<15} {}", stage.name, stage.about)?;
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}
