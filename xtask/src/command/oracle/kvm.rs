//! The in-kernel local APIC of Linux.

use std::fs::File;

use anyhow::{Result, bail};

use super::{Findings, Size};
use crate::command::{Context, Failed};
use crate::process::run_logged;

const DEVICE: &str = "/dev/kvm";

/// Asks the kernel's local APIC: a program of its own, so that this one does not need the drivers.
pub(crate) fn kvm(context: &Context, size: Size) -> Result<Findings> {
    // Looked at before anything is built.
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        return Ok(Findings::skip("kvm", format!("{DEVICE}: {error}")));
    }
    let operations = size.operations.unwrap_or(1_000_000).to_string();
    let seed = size.seed.to_string();
    let arguments = [
        "run",
        "--quiet",
        "--release",
        "--package",
        "vlapic-tests",
        "--example",
        "oracle_kvm",
        "--",
        &operations,
        &seed,
    ];
    let log = context.workspace.logs().join("oracle-kvm.log");
    let done = run_logged(&mut context.workspace.cargo(&arguments), "oracle kvm", &log)?;
    let findings = Findings::of_text("kvm", size.seed, &done.text)?;
    if !done.success && !findings.failed() {
        let (log, tail) = (log.display(), done.tail(30));
        bail!(Failed(format!("the oracle could not be asked (whole output: {log}):\n{tail}")));
    }
    Ok(findings)
}
