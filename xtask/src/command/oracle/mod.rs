//! `cargo xtask oracle`: what somebody else's local APIC says.
//!
//! An oracle is one file here with one function that takes a [`Size`] and returns [`Findings`], one
//! row in [`ORACLES`], and one subcommand in `cli.rs`. One whose program runs in the image gets its
//! findings by [`Findings::of_report`].

mod apicv_model;
mod apicv_page;
mod findings;
mod kvm;
mod native;

use anyhow::Result;

use super::{Context, Verdict};
use crate::cli::{Oracle, OracleArgs};

pub(crate) use apicv_model::apicv_model;
pub(crate) use apicv_page::apicv_page;
pub(crate) use findings::{Findings, write_findings};
pub(crate) use kvm::kvm;

/// How much is asked, and where the sequence begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Operations; `None` is the oracle's own choice.
    pub(crate) operations: Option<u64>,
    pub(crate) seed: u64,
}

/// Asks one oracle: one finding for each mode or machine. That it is not here is no error but a
/// finding: a skip with its reason.
type Ask = fn(&Context, Size) -> Result<Vec<Findings>>;

/// All oracles, in the order of the table.
const ORACLES: [Ask; 5] = [
    |context, size| Ok(vec![kvm(context, size)?]),
    |context, size| Ok(vec![apicv_model(context, size)?]),
    |context, size| Ok(vec![apicv_page(context, size)?]),
    native::bochs,
    native::qemu,
];

pub(crate) fn run(context: &Context, arguments: &OracleArgs) -> Result<Verdict> {
    let size =
        Size { operations: arguments.operations, seed: arguments.seed.unwrap_or_else(fresh_seed) };
    let findings = match &arguments.oracle {
        None => {
            let each = ORACLES.iter().map(|ask| ask(context, size));
            each.collect::<Result<Vec<_>>>()?.concat()
        }
        Some(Oracle::Kvm) => vec![kvm(context, size)?],
        Some(Oracle::ApicvModel) => vec![apicv_model(context, size)?],
        Some(Oracle::ApicvPage) => vec![apicv_page(context, size)?],
        Some(Oracle::Native(arguments)) => native::native(context, arguments, size)?,
    };
    context.print(&findings, |out| write_findings(out, &findings))?;
    Ok(verdict(&findings))
}

/// Failed if one found something; an environment in which nothing could be asked proves nothing.
fn verdict(findings: &[Findings]) -> Verdict {
    if findings.iter().any(Findings::failed) {
        Verdict::Failed
    } else if findings.iter().all(|one| one.skipped.is_some()) {
        Verdict::Environment
    } else {
        Verdict::Passed
    }
}

/// Another one each time; the table shows it, so that a run can be had again.
fn fresh_seed() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.as_secs() ^ u64::from(since.subsec_nanos()) << 32
}

#[cfg(test)]
mod tests {
    use super::{Findings, Verdict, verdict};

    #[test]
    fn one_skip_is_no_failure_and_all_skipped_is_no_pass() {
        let passed = Findings::default();
        let skipped = Findings { skipped: Some("not here".to_owned()), ..Findings::default() };
        let failed = Findings { mismatches: 1, ..Findings::default() };
        assert_eq!(verdict(&[passed.clone(), skipped.clone()]), Verdict::Passed);
        assert_eq!(verdict(std::slice::from_ref(&skipped)), Verdict::Environment);
        assert_eq!(verdict(&[passed, skipped, failed]), Verdict::Failed);
    }
}
