//! The measuring program: built, run, its lines read.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use super::results::{About, Line};
use crate::command::Failed;
use crate::process::{Group, run_logged};
use crate::workspace::Workspace;

const PACKAGE: &str = "vlapic-bench";

/// The program, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Program(PathBuf);

/// Builds it as a release.
pub(super) fn build(workspace: &Workspace) -> Result<Program> {
    let log = workspace.logs().join("bench-build.log");
    let arguments = ["build", "--release", "--package", PACKAGE];
    let done = run_logged(&mut workspace.cargo(&arguments), "build bench", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(60));
        bail!(Failed(format!("{PACKAGE} does not build (whole output: {log}):\n{tail}")));
    }
    Ok(Program(workspace.release().join(PACKAGE)))
}

impl Program {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The rows with `filter` in their identifiers.
    pub(super) fn list(&self, filter: &str) -> Result<Vec<About>> {
        let mut rows = Vec::new();
        self.run(&["list", "--filter", filter], |row| rows.push(row))?;
        Ok(rows)
    }

    /// Times those rows, each for `budget` milliseconds.
    pub(super) fn time(&self, filter: &str, budget: u64, take: impl FnMut(Line)) -> Result<()> {
        self.run(&["time", "--filter", filter, "--budget", &budget.to_string()], take)
    }

    fn run<T: DeserializeOwned>(&self, arguments: &[&str], mut take: impl FnMut(T)) -> Result<()> {
        let mut command = Command::new(&self.0);
        let mut group = Group::spawn(command.args(arguments).stdout(Stdio::piped()))?;
        let output = group.take_stdout().context("no output to read")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            take(serde_json::from_str(&line).with_context(|| format!("not a row: {line}"))?);
        }
        if !group.wait()?.success() {
            bail!(Failed(format!("{} {} failed", self.0.display(), arguments.join(" "))));
        }
        Ok(())
    }
}
