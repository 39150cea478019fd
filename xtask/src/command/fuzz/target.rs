//! One target, run for some time.

use anyhow::Result;
use serde::Serialize;

use super::super::Context;
use super::build::Fuzzers;
use super::corpus;
use crate::process::run_logged;

/// The targets, as the files in `tests/fuzz/fuzz_targets` have them.
pub(crate) const TARGETS: [&str; 6] =
    ["operations", "equivalence", "scribble", "import", "vmx", "svm"];

/// How to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// For how long, besides the replay of the corpus.
    pub(crate) seconds: u64,
    /// From the committed corpus alone; else also from what earlier runs found.
    pub(crate) fresh: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Found {
    pub(crate) target: &'static str,
    /// Inputs that are worth keeping.
    pub(crate) corpus: u64,
    pub(crate) inputs: u64,
    pub(crate) coverage: u64,
    /// What went wrong, and with which input.
    pub(crate) failure: Option<String>,
}

pub(super) fn run(context: &Context, fuzzers: &Fuzzers, name: &str, run: Run) -> Result<Found> {
    let seeds = corpus::unpacked(context, name)?;
    let kept = if run.fresh {
        corpus::empty(context.workspace.fuzz().join("fresh").join(name))?
    } else {
        corpus::found(context, name)?
    };
    let findings = context.workspace.fuzz().join("findings");
    std::fs::create_dir_all(&findings)?;
    let mut command = fuzzers.program(name);
    command.arg(format!("-max_total_time={}", run.seconds));
    command.arg(format!("-max_len={}", corpus::LONGEST));
    command.arg(format!("-artifact_prefix={}/{name}-", findings.display()));
    command.args(["-timeout=120", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    command.args([&kept, &seeds]);
    let log = context.workspace.logs().join(format!("fuzz-{name}.log"));
    let done = run_logged(&mut command, &format!("fuzz {name}"), &log)?;
    let mut found = read(&done.text);
    found.target = TARGETS.into_iter().find(|&target| target == name).unwrap_or_default();
    if !done.success {
        let why = failure(&done.text).unwrap_or_else(|| done.tail(20));
        found.failure = Some(format!("{why} (whole output: {})", log.display()));
    }
    Ok(found)
}

/// The numbers of libFuzzer's last line: `#N DONE cov: C ft: F corp: I/B ...`.
fn read(text: &str) -> Found {
    let mut found = Found::default();
    let marked = |line: &&str| line.starts_with('#') && line.contains(" cov: ");
    if let Some(line) = text.lines().rev().find(marked) {
        found.inputs = number(line.trim_start_matches('#'));
        found.coverage = line.split_once(" cov: ").map_or(0, |(_, rest)| number(rest));
        found.corpus = line.split_once(" corp: ").map_or(0, |(_, rest)| number(rest));
    }
    found
}

/// The panic's place and message, or what libFuzzer says, and the input's file.
fn failure(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines
        .iter()
        .position(|line| line.contains(" panicked at "))
        .or_else(|| lines.iter().position(|line| line.contains("ERROR: libFuzzer")))?;
    let written = lines.iter().find_map(|line| line.split_once("Test unit written to "));
    let file = written.map_or("", |(_, file)| file);
    let what: Vec<&str> = lines[first..].iter().take(3).map(|line| line.trim()).collect();
    Some(format!("{}; input: {file}", what.join(" ")))
}

/// The number that `text` begins with.
fn number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{failure, read};

    const CLEAN: &str = "\
#2\tINITED cov: 100 ft: 200 corp: 7/9b exec/s: 0 rss: 29Mb
#20915\tDONE   cov: 1073 ft: 4093 corp: 742/22Kb lim: 110 exec/s: 1608 rss: 29Mb
Done 20915 runs in 13 second(s)
";

    #[test]
    fn a_clean_run() {
        let found = read(CLEAN);
        assert_eq!((found.inputs, found.coverage, found.corpus), (20915, 1073, 742));
        assert_eq!(failure(CLEAN), None);
    }

    #[test]
    fn a_failure_names_place_and_input() {
        let text = "#9\tNEW cov: 5 ft: 6 corp: 1/1b\n\nthread '<unnamed>' panicked at a.rs:7:9:\nvector 0x5\n\
                    ==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='x'; Test unit written to x/vmx-crash-1\n";
        let why = failure(text).unwrap_or_default();
        assert!(why.contains("a.rs:7:9: vector 0x5") && why.ends_with("x/vmx-crash-1"), "{why}");
        assert_eq!(read(text).inputs, 9);
    }
}
