//! The committed corpus: one file a target, each input with its length before it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::super::{Context, Failed};
use super::build::Fuzzers;
use crate::process::run_logged;

/// Inputs longer than this are not kept.
pub(super) const LONGEST: usize = 2048;

/// Unpacks the committed corpus of `target` into a folder of single files, as libFuzzer wants it.
pub(super) fn unpacked(context: &Context, target: &str) -> Result<PathBuf> {
    let folder = empty(context.workspace.fuzz().join("seeds").join(target))?;
    let file = packed(context, target);
    // None yet, for a new target.
    let bytes = if file.exists() { std::fs::read(&file)? } else { Vec::new() };
    for (number, input) in unpack(&bytes).into_iter().enumerate() {
        std::fs::write(folder.join(format!("{number:04}")), input)?;
    }
    Ok(folder)
}

/// Makes the committed corpus anew: of it and of what long runs have found as little as covers the same.
/// How many inputs it has, and how many bytes.
pub(super) fn minimise(
    context: &Context,
    fuzzers: &Fuzzers,
    target: &str,
) -> Result<(usize, usize)> {
    let seeds = unpacked(context, target)?;
    let found = found(context, target)?;
    let least = empty(context.workspace.fuzz().join("least").join(target))?;
    let mut command = fuzzers.program(target);
    // Edges alone: with counters as well the corpus is many times as large.
    command.args(["-merge=1", "-use_counters=0", &format!("-max_len={LONGEST}")]);
    command.args([&least, &seeds, &found]);
    let log = context.workspace.logs().join(format!("fuzz-{target}-merge.log"));
    let done = run_logged(&mut command, &format!("fuzz {target}: minimise"), &log)?;
    if !done.success {
        bail!(Failed(format!("{target}: {}", done.tail(20))));
    }
    let mut inputs = files(&least)?;
    inputs.sort_by_key(|input| (input.len(), input.clone()));
    let bytes = pack(&inputs)?;
    std::fs::write(packed(context, target), &bytes)?;
    Ok((inputs.len(), bytes.len()))
}

/// Where long runs keep what they find; it stays from run to run.
pub(super) fn found(context: &Context, target: &str) -> Result<PathBuf> {
    let folder = context.workspace.fuzz().join("corpus").join(target);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// An empty folder.
pub(super) fn empty(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn packed(context: &Context, target: &str) -> PathBuf {
    context.workspace.root.join("tests/fuzz/corpus").join(format!("{target}.pack"))
}

fn files(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder)?;
    entries.map(|entry| Ok(std::fs::read(entry?.path())?)).collect()
}

fn pack(inputs: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for input in inputs {
        let length = u16::try_from(input.len()).context("an input is too long to keep")?;
        bytes.extend(length.to_le_bytes());
        bytes.extend(input);
    }
    Ok(bytes)
}

fn unpack(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut inputs = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (input, rest) = rest.split_at(length);
        inputs.push(input);
        bytes = rest;
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::{pack, unpack};

    #[test]
    fn packed_and_unpacked() -> anyhow::Result<()> {
        let inputs = [vec![], vec![1, 2, 3], vec![0; 300]];
        let bytes = pack(&inputs)?;
        assert_eq!(bytes.len(), 2 + 5 + 302);
        assert_eq!(unpack(&bytes), inputs);
        assert_eq!(unpack(&bytes[..4]), [[0u8; 0].as_slice(); 2], "cut short");
        Ok(())
    }
}
