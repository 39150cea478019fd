//! The stages that are cargo commands.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::{Outcome, libtest};
use crate::command::Context;
use crate::hil_build;
use crate::process::{Finished, run_logged};
use crate::report::Skip;

/// The bare-metal image: it has no standard library, so plain cargo commands leave it out.
const IMAGE: &str = "vlapic-hil";

/// What goes to the registry.
const PUBLISHED: [&str; 4] = ["vlapic-core", "vlapic-hal", "apicv", "avic"];

/// How much of a failed command's output is shown.
const SHOWN_LINES: usize = 150;

pub(super) fn fmt(context: &Context) -> Result<Outcome> {
    check(
        context,
        "fmt",
        &mut context.workspace.cargo(&["fmt", "--all", "--check", "--", "--color", "never"]),
    )
}

pub(super) fn clippy(context: &Context) -> Result<Outcome> {
    let arguments =
        ["clippy", "--workspace", "--exclude", IMAGE, "--all-targets", "--", "-Dwarnings"];
    check(context, "clippy", &mut context.workspace.cargo(&arguments))
}

pub(super) fn clippy_image(context: &Context) -> Result<Outcome> {
    let mut command = hil_build::cargo(&context.workspace, "clippy")?;
    check(context, "clippy-image", command.args(["--", "-Dwarnings"]))
}

pub(super) fn doc(context: &Context) -> Result<Outcome> {
    let mut command =
        context.workspace.cargo(&["doc", "--workspace", "--exclude", IMAGE, "--no-deps"]);
    check(context, "doc", command.env("RUSTDOCFLAGS", "-Dwarnings"))
}

pub(super) fn tests(context: &Context) -> Result<Outcome> {
    let done = run(context, "tests", &mut context.workspace.cargo(&["test", "--no-fail-fast"]))?;
    let found = libtest::read(&done.text);
    let mut outcome = Outcome {
        counts: found.counts,
        skips: found.ignored.into_iter().map(Skip::because).collect(),
        failures: found.failed,
    };
    if !done.success {
        outcome.failures.push(complaint(context, "tests", &done));
        // A test binary that does not build or dies has no count of its own.
        outcome.counts.failed = outcome.counts.failed.max(1);
    }
    Ok(outcome)
}

pub(super) fn bare_target(context: &Context) -> Result<Outcome> {
    let target = "x86_64-unknown-none";
    if !target_installed(target) {
        return Ok(Outcome::skipped(format!(
            "target {target} is not installed (rustup target add {target})"
        )));
    }
    let mut command = context.workspace.cargo(&["check", "--target", target]);
    check(context, "bare-target", packages(&mut command))
}

pub(super) fn package(context: &Context) -> Result<Outcome> {
    // All at once: cargo then resolves them among each other though none is on the registry yet. In a
    // folder of its own each time: cargo keeps what it unpacks by the folder's name and the crates'
    // version, and would verify today's crates against yesterday's.
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let folder = context.workspace.packages().join(since.as_millis().to_string());
    let mut command = context.workspace.cargo(&["package", "--allow-dirty", "--target-dir"]);
    let outcome = check(context, "package", packages(command.arg(&folder)));
    // Only space is lost if it stays.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn packages(command: &mut Command) -> &mut Command {
    PUBLISHED.iter().fold(command, |command, name| command.args(["--package", name]))
}

/// A command that counts as one check.
fn check(context: &Context, name: &str, command: &mut Command) -> Result<Outcome> {
    let done = run(context, name, command)?;
    Ok(if done.success {
        Outcome::passed()
    } else {
        Outcome::failed(complaint(context, name, &done))
    })
}

fn run(context: &Context, name: &str, command: &mut Command) -> Result<Finished> {
    run_logged(command, name, &log(context, name))
}

fn complaint(context: &Context, name: &str, done: &Finished) -> String {
    format!("see {}\n{}", log(context, name).display(), done.tail(SHOWN_LINES))
}

fn log(context: &Context, name: &str) -> PathBuf {
    context.workspace.logs().join(format!("{name}.log"))
}

fn target_installed(target: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .stdin(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    !libdir.is_empty() && PathBuf::from(libdir).exists()
}
