//! `cargo xtask exhaustive`: every low word of ICR against the manuals' tables.

use anyhow::{Result, bail};

use super::oracle::{Findings, write_findings};
use super::{Context, Failed, Verdict};
use crate::process::run_logged;

pub(crate) fn run(context: &Context) -> Result<Verdict> {
    let findings = all_words(context)?;
    context.print(&findings, |out| write_findings(out, std::slice::from_ref(&findings)))?;
    Ok(if findings.failed() { Verdict::Failed } else { Verdict::Passed })
}

/// All 2^32 words, four times. A program of its own, so that this one does not need the drivers.
pub(crate) fn all_words(context: &Context) -> Result<Findings> {
    let arguments =
        ["run", "--quiet", "--release", "--package", "vlapic-tests", "--example", "exhaustive"];
    let log = context.workspace.logs().join("exhaustive.log");
    let done = run_logged(&mut context.workspace.cargo(&arguments), "exhaustive", &log)?;
    let findings = Findings::of_text("icr words", 0, &done.text)?;
    if !done.success && !findings.failed() {
        let (log, tail) = (log.display(), done.tail(30));
        bail!(Failed(format!("it did not come to an end (whole output: {log}):\n{tail}")));
    }
    Ok(Findings { seed: None, ..findings })
}
