//! The local APIC of the machine that the image runs on.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Findings, Size};
use crate::cli::{LimitArgs, Machine, NativeArgs, Selection};
use crate::command::{Context, Failed, hil};
use crate::emulator::{Emulator, Limits, watch_metal};
use crate::report::{Report, print_report};

/// In each mode that the machine has.
const OPERATIONS: u64 = 1_000_000;
/// Two CPUs are what it takes for a message to reach another one.
const CPUS: u32 = 2;
const LIMITS: LimitArgs = LimitArgs { timeout: 3600, stall: 300 };

/// On the machine asked for, or on both emulators.
pub(crate) fn native(
    context: &Context,
    arguments: &NativeArgs,
    size: Size,
) -> Result<Vec<Findings>> {
    match (arguments.machine, &arguments.serial) {
        (Some(Machine::Metal), Some(device)) => metal(device),
        (_, Some(_)) => bail!("--serial goes with --machine metal"),
        (Some(machine), None) => on(context, machine, size),
        (None, None) => {
            let mut all = bochs(context, size)?;
            all.extend(qemu(context, size)?);
            Ok(all)
        }
    }
}

pub(crate) fn bochs(context: &Context, size: Size) -> Result<Vec<Findings>> {
    on(context, Machine::Bochs, size)
}

pub(crate) fn qemu(context: &Context, size: Size) -> Result<Vec<Findings>> {
    on(context, Machine::QemuSvm, size)
}

fn on(context: &Context, machine: Machine, size: Size) -> Result<Vec<Findings>> {
    let name = format!("native {}", machine.name());
    // Looked for before anything is built.
    if let Err(error) = Emulator::find(machine, &context.workspace) {
        return Ok(vec![Findings::skip(&name, format!("{error:#}"))]);
    }
    let operations = size.operations.unwrap_or(OPERATIONS);
    let words = format!("operations={operations} seed={}", size.seed);
    let selection = Selection { cpus: CPUS, case: Some("oracle-native".to_owned()) };
    let report = hil::run_words(context, machine, &selection, &words, Limits::from(LIMITS))?;
    found(&name, &report, Some(size.seed))
}

/// What the image on a real machine was told when it was written is what it does.
fn metal(device: &Path) -> Result<Vec<Findings>> {
    let report = watch_metal(device, Limits::from(LIMITS), Report::new("metal"))?;
    found("native metal", &report, None)
}

fn found(name: &str, report: &Report, seed: Option<u64>) -> Result<Vec<Findings>> {
    let mut findings = Findings::of_report(report);
    if findings.is_empty() {
        print_report(&mut std::io::stderr(), report)?;
        bail!(Failed(format!("{name}: the image did not report")));
    }
    for one in &mut findings {
        one.seed = one.seed.or(seed);
        // The machine stopped, or the like; mismatches have details of their own.
        if one.mismatches == 0 && report.exit_code() != Some(0) {
            one.details.extend(report.faults.iter().cloned());
        }
    }
    Ok(findings)
}
