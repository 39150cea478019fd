//! Building the bare-metal image: rustc, the bundled linker, the packer, nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command::Failed;
use crate::process::run_logged;
use crate::workspace::Workspace;

/// The image's package and binary.
const PACKAGE: &str = "vlapic-hil";
const PROFILE: &str = "hil";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What a build leaves.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// For GRUB or QEMU's `-kernel`.
    pub(crate) elf: PathBuf,
    /// The raw disk, for emulators and USB sticks.
    pub(crate) image: PathBuf,
}

/// Builds the ELF and packs it into the raw disk image.
pub(crate) fn build(workspace: &Workspace) -> Result<Built> {
    let log = workspace.logs().join("hil-build.log");
    let done = run_logged(&mut cargo(workspace, "build")?, "build image", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(60));
        bail!(Failed(format!("the image does not build (whole output: {log}):\n{tail}")));
    }
    let elf = workspace.hil().join(TARGET).join(PROFILE).join(PACKAGE);
    let image = workspace.hil().join("hil.img");
    // Packed beside its place and renamed, so that a run that copies it meanwhile sees a whole one.
    let fresh = workspace.hil().join(format!("hil.img.{}", std::process::id()));
    crate::image::pack(&elf, &fresh).context("cannot pack the image")?;
    std::fs::rename(&fresh, &image).with_context(|| format!("cannot write {}", image.display()))?;
    Ok(Built { elf, image })
}

/// A cargo subcommand on the image, with the flags a program without an operating system needs.
///
/// The package's build script adds the link script where it sees this linker. The flags live here and not in the workspace's configuration because there every crate's tests would
/// get them; the separate target directory keeps the two from rebuilding each other.
pub(crate) fn cargo(workspace: &Workspace, subcommand: &str) -> Result<Command> {
    let mut command = workspace.cargo(&[
        subcommand,
        "--package",
        PACKAGE,
        "--profile",
        PROFILE,
        "--target",
        TARGET,
    ]);
    command
        .arg("--target-dir")
        .arg(workspace.hil())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?.join("\u{1f}"));
    Ok(command)
}

fn flags() -> Result<Vec<String>> {
    Ok(vec![
        format!("-Clinker={}", linker()?.display()),
        "-Clinker-flavor=ld.lld".to_owned(),
        "-Clink-self-contained=no".to_owned(),
        "-Clink-arg=-zmax-page-size=4096".to_owned(),
        "-Crelocation-model=static".to_owned(),
        "-Crelro-level=off".to_owned(),
        "-Cno-redzone=yes".to_owned(),
    ])
}

/// The linker that comes with rustc.
fn linker() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&rustc).args(arguments).stdin(Stdio::null()).output();
        let output = output.context("cannot run rustc: install Rust and put rustc on PATH")?;
        ensure!(output.status.success(), "rustc {} failed", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    let version = ask(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or(TARGET);
    let bundled = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/rust-lld");
    if bundled.exists() {
        return Ok(bundled);
    }
    for name in ["rust-lld", "ld.lld"] {
        let runs =
            Command::new(name).args(["-flavor", "gnu", "--version"]).stdin(Stdio::null()).output();
        if runs.is_ok() {
            return Ok(name.into());
        }
    }
    bail!(
        "no linker for the image: {} is missing; install Rust with rustup, or lld",
        bundled.display()
    )
}
