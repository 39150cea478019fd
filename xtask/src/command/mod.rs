//! The commands, one module each.

pub(crate) mod bench;
pub(crate) mod codegen;
mod demo;
mod exhaustive;
pub(crate) mod fuzz;
mod hil;
mod image;
pub(crate) mod oracle;
mod setup;
pub(crate) mod stage;
mod test;

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::cli::{Cli, Command};
use crate::report::Counts;
use crate::workspace::Workspace;

/// The exit status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Verdict {
    Passed = 0,
    Failed = 1,
    /// Wrong usage, or something missing on this machine.
    Environment = 2,
}

impl From<Counts> for Verdict {
    fn from(counts: Counts) -> Self {
        if counts.failed == 0 { Self::Passed } else { Self::Failed }
    }
}

/// An error that says something of ours is wrong, not this machine or the usage.
#[derive(Clone, Debug)]
pub(crate) struct Failed(pub(crate) String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl Verdict {
    /// The exit status of a command that ended with `error`.
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        if error.is::<Failed>() { Self::Failed } else { Self::Environment }
    }
}

/// What every command gets.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) workspace: Workspace,
    json: bool,
}

/// Runs the command asked for.
pub(crate) fn run(cli: &Cli) -> Result<Verdict> {
    let context = Context { workspace: Workspace::find()?, json: cli.json };
    match &cli.command {
        Command::Bench(arguments) => bench::run(&context, arguments),
        Command::Demo(arguments) => demo::run(&context, arguments),
        Command::Test(arguments) => test::run(&context, arguments),
        Command::Hil(arguments) => hil::run(&context, arguments),
        Command::Image(arguments) => image::run(&context, arguments),
        Command::Oracle(arguments) => oracle::run(&context, arguments),
        Command::Exhaustive => exhaustive::run(&context),
        Command::Codegen(arguments) => codegen::run(&context, arguments),
        Command::Fuzz(arguments) => fuzz::run(&context, arguments),
        Command::Setup(arguments) => setup::run(&context, arguments),
    }
}

impl Context {
    /// The result, on stdout: as JSON if that was asked for, else by `text`.
    pub(crate) fn print(
        &self,
        value: &impl Serialize,
        text: impl FnOnce(&mut std::io::StdoutLock<'static>) -> Result<()>,
    ) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, value)?;
            writeln!(out)?;
        } else {
            text(&mut out)?;
        }
        Ok(out.flush()?)
    }
}
