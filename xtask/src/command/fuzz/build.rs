//! Building the targets with libFuzzer, on a stock compiler.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::super::{Context, Failed};
use crate::process::run_logged;

/// What cargo-fuzz gives the compiler where no sanitizer is asked for. All of it is plain code
/// generation, which a stable compiler has.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=4",
];

/// The built targets.
#[derive(Clone, Debug)]
pub(crate) struct Fuzzers {
    folder: PathBuf,
}

impl Fuzzers {
    pub(crate) fn program(&self, target: &str) -> Command {
        let mut command = Command::new(self.folder.join(target));
        command.env("RUST_BACKTRACE", "0");
        command
    }
}

/// What this machine lacks to build libFuzzer, if anything.
pub(crate) fn lacks() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let there = Command::new(&compiler)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!there).then(|| format!("no C++ compiler ({compiler}): libFuzzer is built from source"))
}

pub(crate) fn build(context: &Context) -> Result<Fuzzers> {
    let host = host()?;
    let target = context.workspace.fuzz();
    let manifest = context.workspace.root.join("tests/fuzz/Cargo.toml");
    // With `--target` the flags do not reach build scripts.
    let mut command = context.workspace.cargo(&["build", "--release", "--target", &host]);
    command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&target);
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    let log = context.workspace.logs().join("fuzz-build.log");
    let done = run_logged(&mut command, "fuzz build", &log)?;
    if !done.success {
        bail!(Failed(format!("the fuzz targets do not build:\n{}", done.tail(30))));
    }
    Ok(Fuzzers { folder: target.join(host).join("release") })
}

/// The machine we run on, as the compiler names it.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}
