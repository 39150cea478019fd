//! Runs kept under `target/bench/`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::results::Results;
use crate::workspace::Workspace;

pub(super) fn path(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.bench().join(format!("{name}.json"))
}

pub(super) fn write(workspace: &Workspace, name: &str, results: &Results) -> Result<()> {
    let path = path(workspace, name);
    std::fs::create_dir_all(workspace.bench())?;
    let text = serde_json::to_string_pretty(results)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn load(workspace: &Workspace, name: &str) -> Result<Results> {
    let path = path(workspace, name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("no run was saved as '{name}': {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a run", path.display()))
}
