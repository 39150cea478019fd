//! Expected code, kept as text in the repository.

use std::path::PathBuf;

use anyhow::{Context, Result};
use similar::TextDiff;

/// One expected listing.
#[derive(Debug)]
pub(crate) struct Snapshot {
    path: PathBuf,
    name: String,
}

/// What the code is to its expected listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum State {
    Same,
    /// With the lines that differ.
    Differs(String),
    /// It was taken with this compiler, so nothing can be said.
    OtherCompiler(String),
    /// There is none yet.
    Missing,
}

impl Snapshot {
    pub(crate) fn new(folder: &std::path::Path, name: &str) -> Self {
        Self { path: folder.join(format!("{name}.asm")), name: name.to_owned() }
    }

    pub(crate) fn compare(&self, compiler: &str, listing: &str) -> State {
        match std::fs::read_to_string(&self.path) {
            Ok(expected) => state(&expected, &self.text(compiler, listing), &self.name),
            Err(_) => State::Missing,
        }
    }

    pub(crate) fn bless(&self, compiler: &str, listing: &str) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&self.path, self.text(compiler, listing))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn text(&self, compiler: &str, listing: &str) -> String {
        format!("; {compiler}\n{}:\n{listing}", self.name)
    }
}

fn state(expected: &str, found: &str, name: &str) -> State {
    let compiler = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    if compiler(expected) != compiler(found) {
        return State::OtherCompiler(compiler(expected).trim_start_matches("; ").to_owned());
    }
    if expected == found {
        return State::Same;
    }
    let diff = TextDiff::from_lines(expected, found);
    let diff = diff.unified_diff().context_radius(3).header("expected", "found").to_string();
    State::Differs(format!("{name} has other code:\n{diff}"))
}

#[cfg(test)]
mod tests {
    use super::{State, state};

    #[test]
    fn a_difference_is_shown_line_by_line() {
        let expected = "; rustc 1\nf:\n    mov rax, [rdi]\n    ret\n";
        assert_eq!(state(expected, expected, "f"), State::Same);
        let found = "; rustc 1\nf:\n    mov rax, [rdi+8]\n    ret\n";
        let State::Differs(diff) = state(expected, found, "f") else {
            panic!("another instruction is a difference");
        };
        assert!(diff.contains("-    mov rax, [rdi]\n+    mov rax, [rdi+8]"), "{diff}");
    }

    #[test]
    fn another_compiler_says_nothing() {
        let other = State::OtherCompiler("rustc 1".to_owned());
        assert_eq!(state("; rustc 1\na\n", "; rustc 2\nb\n", "f"), other);
    }
}
