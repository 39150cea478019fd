//! Building `tests/codegen`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::Failed;
use crate::process::run_logged;
use crate::workspace::Workspace;

const PACKAGE: &str = "vlapic-codegen";
const LIBRARY: &str = "libvlapic_codegen.so";

/// Why there is nothing to read on this machine, if so.
pub(crate) fn cannot_be_read() -> Option<String> {
    let fits = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    (!fits).then(|| "the machine code is read on x86-64 Linux only".to_owned())
}

/// Builds the library with the release profile, as a user's crate would be, and says where it is.
///
/// Flags of this machine (another processor, say) do not count.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let log = workspace.logs().join("codegen-build.log");
    let mut command = workspace.cargo(&["build", "--release", "--package", PACKAGE]);
    command.arg("--target-dir").arg(workspace.machine_code());
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let done = run_logged(&mut command, "build codegen", &log)?;
    if !done.success {
        let (log, tail) = (log.display(), done.tail(60));
        bail!(Failed(format!("{PACKAGE} does not build (whole output: {log}):\n{tail}")));
    }
    Ok(workspace.machine_code().join("release").join(LIBRARY))
}

/// What the compiler calls itself, with its version.
pub(crate) fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .context("cannot run rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
