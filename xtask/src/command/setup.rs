//! `cargo xtask setup`.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Context, Verdict};
use crate::cli::{Machine, SetupArgs};
use crate::emulator::Emulator;

pub(crate) fn run(context: &Context, arguments: &SetupArgs) -> Result<Verdict> {
    let mut machines = vec![Machine::Bochs];
    if arguments.qemu {
        machines.push(Machine::QemuSvm);
    }
    let mut verdict = Verdict::Passed;
    let mut found = serde_json::Map::new();
    let mut lines = Vec::new();
    for machine in machines {
        let (key, text) = match Emulator::find(machine, &context.workspace) {
            Ok(emulator) => ("found", emulator.describe()),
            Err(error) => {
                verdict = Verdict::Environment;
                ("missing", format!("{error:#}"))
            }
        };
        lines.push(format!("{}: {text}", machine.name()));
        found.insert(machine.name().to_owned(), json!({ key: text }));
    }
    context.print(&found, |out| {
        for line in lines {
            writeln!(out, "{line}")?;
        }
        Ok(())
    })?;
    Ok(verdict)
}
