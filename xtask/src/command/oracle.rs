//! `cargo xtask oracle`: what somebody else's local APIC says.

use std::io::Write;

use anyhow::{Context as _, Result, bail};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Context, Failed, Verdict};
use crate::cli::{Oracle, OracleArgs};
use crate::process::run_logged;

/// What a run of an oracle found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct Findings {
    pub(crate) oracle: &'static str,
    pub(crate) seed: u64,
    /// Why it could not be asked.
    pub(crate) skipped: Option<String>,
    pub(crate) operations: u64,
    pub(crate) comparisons: u64,
    /// Known deviations: name, how often, reason.
    pub(crate) deviations: Vec<(String, u64, String)>,
    /// The first thing that differed and should not: the operations that are needed, and what.
    pub(crate) mismatch: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &OracleArgs) -> Result<Verdict> {
    let Oracle::Kvm { operations, seed } = arguments.oracle;
    let findings = kvm(context, operations, seed)?;
    context.print(&findings, |out| write_findings(out, &findings))?;
    Ok(match &findings {
        Findings { skipped: Some(_), .. } => Verdict::Environment,
        Findings { mismatch, .. } if !mismatch.is_empty() => Verdict::Failed,
        _ => Verdict::Passed,
    })
}

/// Asks the kernel's local APIC.
pub(crate) fn kvm(context: &Context, operations: u64, seed: u64) -> Result<Findings> {
    let (operations, text) = (operations.to_string(), seed.to_string());
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
        &text,
    ];
    let log = context.workspace.logs().join("oracle-kvm.log");
    let done = run_logged(&mut context.workspace.cargo(&arguments), "oracle kvm", &log)?;
    let findings = parse("kvm", seed, &done.text)?;
    if !done.success && findings.mismatch.is_empty() {
        let (log, tail) = (log.display(), done.tail(30));
        bail!(Failed(format!("the oracle could not be asked (whole output: {log}):\n{tail}")));
    }
    Ok(findings)
}

fn parse(oracle: &'static str, seed: u64, text: &str) -> Result<Findings> {
    let mut findings = Findings { oracle, seed, ..Findings::default() };
    let number = |word: &str| word.parse().with_context(|| format!("not a number: {word}"));
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("SKIPPED", why)) => findings.skipped = Some(why.to_owned()),
            Some(("operations", count)) => findings.operations = number(count)?,
            Some(("comparisons", count)) => findings.comparisons = number(count)?,
            Some(("deviation", rest)) => {
                let mut words = rest.splitn(3, ' ').map(str::to_owned);
                if let (Some(name), Some(count), Some(reason)) =
                    (words.next(), words.next(), words.next())
                {
                    findings.deviations.push((name, number(&count)?, reason));
                }
            }
            Some(("", detail)) => findings.mismatch.push(detail.trim().to_owned()),
            _ => {}
        }
    }
    Ok(findings)
}

fn write_findings(out: &mut impl Write, findings: &Findings) -> Result<()> {
    if let Some(why) = &findings.skipped {
        return Ok(writeln!(out, "skipped oracle {}: {why}", findings.oracle)?);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["oracle", "what", "count", "why"]);
    let mut row = |what: &str, count: u64, why: &str| {
        table.add_row([findings.oracle, what, &count.to_string(), why]);
    };
    row("operations", findings.operations, &format!("seed {}", findings.seed));
    row("comparisons", findings.comparisons, "");
    for (name, count, reason) in &findings.deviations {
        row(name, *count, reason);
    }
    row("mismatches", u64::from(!findings.mismatch.is_empty()), "");
    writeln!(out, "{table}")?;
    for line in &findings.mismatch {
        writeln!(out, "FAILED: {line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_a_run() {
        let text = "operations 12\ncomparisons 345\ndeviation NoErrors 3 KVM records none\nmismatches 1\n  Take { vcpu: 0 }\n  Fault { ours: true }\n";
        let findings = parse("kvm", 7, text).unwrap();
        assert_eq!((findings.operations, findings.comparisons), (12, 345));
        assert_eq!(findings.deviations, [("NoErrors".into(), 3, "KVM records none".into())]);
        assert_eq!(findings.mismatch, ["Take { vcpu: 0 }", "Fault { ours: true }"]);
        assert_eq!(findings.skipped, None);
    }

    #[test]
    fn reads_a_skip() {
        let findings = parse("kvm", 1, "SKIPPED /dev/kvm cannot be opened\n").unwrap();
        assert_eq!(findings.skipped.as_deref(), Some("/dev/kvm cannot be opened"));
        assert!(parse("kvm", 1, "operations many\n").is_err());
    }
}
