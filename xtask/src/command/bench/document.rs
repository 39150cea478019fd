//! A run written into docs/performance.md, its plot beside it.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::results::Results;
use super::{chart, table};
use crate::workspace::Workspace;

const DOCUMENT: &str = "docs/performance.md";
const PLOT: &str = "docs/performance-routing.svg";

/// What is between these lines is written by this command.
const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

/// Replaces the measured part of the document, and the plot.
pub(super) fn write(workspace: &Workspace, results: &Results) -> Result<()> {
    let path = workspace.root.join(DOCUMENT);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let new = replaced(&text, &measured(results)?)
        .with_context(|| format!("{DOCUMENT} has no place for what was measured"))?;
    std::fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))?;
    chart::curves(results, &workspace.root.join(PLOT))
}

fn measured(results: &Results) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "\n{}, {}.\n", results.cpu, results.rustc)?;
    writeln!(text, "{}\n", table::markdown(results))?;
    for note in table::remarks(results) {
        writeln!(text, "- {note}")?;
    }
    if results.rows.iter().any(|row| row.kernel.is_some()) {
        let kernel = table::as_markdown(table::kernel(results));
        writeln!(text, "\n### The kernel's local APIC, one ioctl an operation\n\n{kernel}")?;
    }
    if !results.image.is_empty() {
        let image = table::as_markdown(table::image(&results.image));
        writeln!(text, "\n### In the image, on Bochs\n")?;
        writeln!(
            text,
            "VM exits of one operation of a guest / instructions in the drivers for all"
        )?;
        writeln!(text, "of them, from exit to entry.\n\n{image}")?;
    }
    writeln!(text)?;
    Ok(text)
}

fn replaced(text: &str, measured: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{measured}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, replaced};

    #[test]
    fn only_what_is_between_the_lines_changes() {
        let text = format!("a\n{BEGIN}old\n{END}z\n");
        assert_eq!(replaced(&text, "new\n"), Some(format!("a\n{BEGIN}new\n{END}z\n")));
        assert_eq!(replaced("a\n", "new\n"), None);
    }
}
