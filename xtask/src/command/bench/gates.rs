//! Instruction counts held to the numbers in the repository.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::counts::{Counted, count};
use super::program::{self, Program};
use super::results::{Count, rustc_version};
use crate::command::{Context, Verdict};
use crate::workspace::Workspace;

/// The committed numbers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Baseline {
    /// The compiler they are of: another one compiles otherwise.
    rustc: String,
    /// How much a row may grow, as a part of what it was.
    tolerance: f64,
    /// Instructions an operation.
    rows: BTreeMap<String, f64>,
}

const TOLERANCE: f64 = 0.03;

/// What came of holding the counts to the baseline.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates {
    pub(crate) passed: usize,
    pub(crate) failures: Vec<String>,
    /// Why nothing was held to anything.
    pub(crate) skipped: Option<String>,
}

/// Counts and compares.
pub(crate) fn check(context: &Context) -> Result<Gates> {
    let workspace = &context.workspace;
    let path = path(workspace);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let baseline: Baseline = serde_json::from_str(&text).context("the baseline is not readable")?;
    let rustc = rustc_version();
    if baseline.rustc != rustc {
        let why = format!("the numbers are of {}, this is {rustc}", baseline.rustc);
        return Ok(Gates { skipped: Some(why), ..Gates::default() });
    }
    let program = program::build(workspace)?;
    Ok(match count(workspace, &program, "")? {
        Counted::Skipped(why) => Gates { skipped: Some(why), ..Gates::default() },
        Counted::Rows(rows) => compare(&baseline, &rows),
    })
}

/// Writes what is counted now as the numbers to hold to.
pub(super) fn bless(context: &Context, program: &Program) -> Result<Verdict> {
    let rows = match count(&context.workspace, program, "")? {
        Counted::Rows(rows) => rows,
        Counted::Skipped(why) => {
            eprintln!("nothing to bless: {why}");
            return Ok(Verdict::Environment);
        }
    };
    let rows = rows.into_iter().map(|row| (row.id, round(row.instructions))).collect();
    let baseline = Baseline { rustc: rustc_version(), tolerance: TOLERANCE, rows };
    let path = path(&context.workspace);
    let text = serde_json::to_string_pretty(&baseline)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    context.print(&baseline, |out| {
        Ok(writeln!(out, "{} rows written to {}", baseline.rows.len(), path.display())?)
    })?;
    Ok(Verdict::Passed)
}

fn compare(baseline: &Baseline, rows: &[Count]) -> Gates {
    let mut gates = Gates::default();
    let mut shrunk = 0;
    for row in rows {
        let Some(&before) = baseline.rows.get(&row.id) else {
            gates.failures.push(format!(
                "{}: no number in the repository ({:.1} now); `cargo xtask bench --bless` writes it",
                row.id, row.instructions
            ));
            continue;
        };
        if row.instructions > before * (1.0 + baseline.tolerance) {
            let grown = 100.0 * (row.instructions / before - 1.0);
            gates.failures.push(format!(
                "{}: {:.1} instructions an operation, {before:.1} in the repository: {grown:+.1} %, more than {:.0} %; \
                 if that is meant, `cargo xtask bench --bless`",
                row.id,
                row.instructions,
                100.0 * baseline.tolerance
            ));
        } else {
            gates.passed += 1;
            shrunk += usize::from(row.instructions < before * (1.0 - baseline.tolerance));
        }
    }
    if shrunk > 0 {
        eprintln!(
            "{shrunk} rows are well below their numbers: `cargo xtask bench --bless` keeps them there"
        );
    }
    for id in baseline.rows.keys().filter(|id| !rows.iter().any(|row| row.id == **id)) {
        gates.failures.push(format!("{id}: in the repository, but there is no such row any more"));
    }
    gates
}

fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/bench/instructions.json")
}

#[cfg(test)]
mod tests {
    use super::{Baseline, Count, compare};

    fn baseline() -> Baseline {
        let rows = [("a".to_owned(), 100.0), ("b".to_owned(), 200.0)];
        Baseline { rustc: String::new(), tolerance: 0.03, rows: rows.into() }
    }

    fn rows(a: f64, b: f64) -> [Count; 2] {
        [("a", a), ("b", b)].map(|(id, instructions)| Count { id: id.to_owned(), instructions })
    }

    #[test]
    fn growth_above_the_tolerance_fails() {
        let gates = compare(&baseline(), &rows(103.0, 206.1));
        assert_eq!((gates.passed, gates.failures.len()), (1, 1));
        assert!(gates.failures[0].starts_with("b: 206.1 instructions"), "{:?}", gates.failures);
        assert_eq!(compare(&baseline(), &rows(50.0, 200.0)).passed, 2);
    }

    #[test]
    fn rows_come_and_go_by_blessing_alone() {
        let mut rows = rows(100.0, 200.0).to_vec();
        rows[1].id = "c".to_owned();
        let gates = compare(&baseline(), &rows);
        assert_eq!((gates.passed, gates.failures.len()), (1, 2));
    }
}
