//! Where things are: the workspace root and its target directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The folders the commands work in.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and `build.target-dir` hold here as well.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .stdin(Stdio::null())
            .output()
            .context("cannot run cargo: install Rust and put cargo on PATH")?;
        ensure!(
            output.status.success(),
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let folder = |key: &str| -> Result<PathBuf> {
            Ok(metadata[key]
                .as_str()
                .with_context(|| format!("cargo metadata has no {key}"))?
                .into())
        };
        Ok(Self { root: folder("workspace_root")?, target: folder("target_directory")? })
    }

    /// Everything about the bare-metal image; its own cargo target directory as well.
    pub(crate) fn hil(&self) -> PathBuf {
        self.target.join("hil")
    }

    /// Emulators fetched for this workspace.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// One folder per run of the image.
    pub(crate) fn runs(&self) -> PathBuf {
        self.hil().join("runs")
    }

    /// Where the crates are packaged.
    pub(crate) fn packages(&self) -> PathBuf {
        self.target.join("packages")
    }

    /// The library whose machine code is read; its own cargo target directory as well.
    pub(crate) fn machine_code(&self) -> PathBuf {
        self.target.join("codegen")
    }

    /// The fuzz targets, and what they have found; their own cargo target directory as well.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// Release programs.
    pub(crate) fn release(&self) -> PathBuf {
        self.target.join("release")
    }

    /// What was measured.
    pub(crate) fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// What the stages of `cargo xtask test` printed.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }

    /// A cargo command run at the workspace root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo());
        command.args(arguments).current_dir(&self.root);
        command
    }
}

/// The cargo that runs us, if one does.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
