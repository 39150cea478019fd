//! Instructions, counted by callgrind: the same on every run, however busy the machine is.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::program::Program;
use super::results::Count;
use crate::command::Failed;
use crate::process::run_logged;
use crate::workspace::Workspace;

/// What callgrind watches: each call of it becomes a part of its output.
const WATCHED: &str = "vlapic_bench::count::counted";

/// Instructions of each gated row, or why not.
#[derive(Clone, Debug)]
pub(super) enum Counted {
    Rows(Vec<Count>),
    Skipped(String),
}

/// The program's line for each row it has run.
#[derive(Debug, Deserialize)]
struct Ran {
    id: String,
    operations: f64,
}

/// Counts the instructions of the gated rows with `filter` in their identifiers.
pub(super) fn count(workspace: &Workspace, program: &Program, filter: &str) -> Result<Counted> {
    if !valgrind_runs() {
        return Ok(Counted::Skipped("valgrind is not installed".to_owned()));
    }
    let folder = workspace.bench().join("callgrind");
    // What an earlier run left would be taken for this one's.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let out = folder.join("out");
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={WATCHED}"))
        .arg(format!("--dump-after={WATCHED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program.path())
        .args(["count", "--filter", filter]);
    let log = workspace.logs().join("bench-count.log");
    let done = run_logged(&mut command, "count instructions", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(30));
        bail!(Failed(format!("callgrind failed (whole output: {log}):\n{tail}")));
    }
    let ran = done.text.lines().filter(|line| line.starts_with('{'));
    let ran: Vec<Ran> = ran.map(serde_json::from_str).collect::<Result<_, _>>()?;
    let rows = ran.into_iter().enumerate().map(|(index, ran)| {
        let part = folder.join(format!("out.{}", index + 1));
        let total = total(&part).with_context(|| format!("row {}", ran.id))?;
        Ok(Count { id: ran.id, instructions: total / ran.operations })
    });
    Ok(Counted::Rows(rows.collect::<Result<_>>()?))
}

/// The instructions of one part of callgrind's output.
fn total(part: &Path) -> Result<f64> {
    let text =
        std::fs::read_to_string(part).with_context(|| format!("no part {}", part.display()))?;
    let events = text.lines().find_map(|line| line.strip_prefix("events:"));
    ensure!(events.map(str::trim) == Some("Ir"), "callgrind counted something else: {events:?}");
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"));
    let total = total.context("no total in callgrind's output")?.trim().parse()?;
    ensure!(total > 0.0, "callgrind saw no instruction: was {WATCHED} inlined?");
    Ok(total)
}

fn valgrind_runs() -> bool {
    let mut command = Command::new("valgrind");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::total;

    #[test]
    fn reads_a_part() -> anyhow::Result<()> {
        let file = std::env::temp_dir().join(format!("callgrind-part-{}", std::process::id()));
        std::fs::write(&file, "version: 1\npart: 3\n\nevents: Ir\nsummary: 9\n\ntotals: 384028\n")?;
        let read = total(&file);
        std::fs::write(&file, "events: Ir\ntotals: 0\n")?;
        let nothing = total(&file);
        std::fs::remove_file(&file)?;
        assert_eq!(read?, 384_028.0);
        assert!(nothing.is_err());
        Ok(())
    }
}
