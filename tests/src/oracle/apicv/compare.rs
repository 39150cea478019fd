//! The image's lines against the model.

use std::collections::HashMap;

use vlapic_sequences::vmx::{Batch, Record, STEPS, Setup};

use super::deviation::{Deviation, Quirks};
use super::replay::{Replay, replay};

/// What a comparison of digests came to.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Operations that the image carried out.
    pub operations: u64,
    /// Interrupts that guests took.
    pub taken: u64,
    /// VM exits but VMCALLs.
    pub exits: u64,
    /// Batches that the model agrees with only with a known deviation.
    pub deviations: HashMap<Deviation, u64>,
    /// Batches that it does not agree with.
    pub mismatches: Vec<Mismatch>,
    /// Lines that no batch of this seed has.
    pub strange: Vec<String>,
}

/// A batch on which processor and model differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of its [`Setup`].
    pub setup: &'static str,
    /// Its number.
    pub batch: u64,
}

/// Reads the `HIL-DIGEST` lines of a run with `seed`.
pub fn compare_digests<'l>(seed: u64, lines: impl IntoIterator<Item = &'l str>) -> Comparison {
    let mut comparison = Comparison::default();
    for line in lines.into_iter().filter(|line| line.contains("HIL-DIGEST ")) {
        let read = || {
            let name = value(line, "setup")?;
            let setup = Setup::ALL.into_iter().find(|setup| setup.name == name)?;
            let digest = u64::from_str_radix(value(line, "digest")?, 16).ok()?;
            Some((setup, value(line, "batch")?.parse().ok()?, digest))
        };
        match read() {
            Some((setup, number, digest)) => {
                comparison.batch(&Batch::new(seed, setup, number), number, digest)
            }
            None => comparison.strange.push(line.to_owned()),
        }
    }
    comparison
}

impl Comparison {
    fn batch(&mut self, batch: &Batch, number: u64, digest: u64) {
        self.operations += STEPS as u64;
        let strict = replay(batch, Quirks::default());
        self.taken += strict.taken as u64;
        self.exits += strict.exits as u64;
        if strict.digest() == digest {
            return;
        }
        if replay(batch, Quirks::BOCHS).digest() != digest {
            self.mismatches.push(Mismatch { setup: batch.setup.name, batch: number });
            return;
        }
        for deviation in needed(batch, digest) {
            *self.deviations.entry(deviation).or_default() += 1;
        }
    }
}

/// The deviations without which the model would not agree.
fn needed(batch: &Batch, digest: u64) -> Vec<Deviation> {
    let is_needed =
        |&deviation: &Deviation| replay(batch, Quirks::BOCHS.without(deviation)).digest() != digest;
    Deviation::ALL.into_iter().filter(is_needed).collect()
}

/// The first step of a batch on which the two differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its index.
    pub step: usize,
    /// For people: the steps that lead to it, and both records.
    pub lines: Vec<String>,
}

/// Reads the `HIL-STEP` and `HIL-WORD` lines of one batch.
pub fn compare_steps<'l>(
    batch: &Batch,
    lines: impl IntoIterator<Item = &'l str>,
) -> Option<Difference> {
    let lines: Vec<&str> = lines.into_iter().collect();
    let model = replay(batch, Quirks::BOCHS);
    let (step, found) = lines
        .iter()
        .filter_map(|line| line.split_once("HIL-STEP step=")?.1.split_once(' '))
        .zip(0..)
        .find(|&((_, found), step)| {
            model.records.get(step).is_none_or(|record| record.to_string() != found.trim_end())
        })
        .map(|((_, found), step): ((&str, &str), usize)| (step, found))?;
    let expected = model.records.get(step).map_or_else(String::new, Record::to_string);
    let mut text = vec![format!("setup {} status {:x?}", batch.setup.name, batch.status)];
    let first = step.saturating_sub(8);
    text.extend((first..step).map(|before| {
        format!("step {before}: {:x?} {}", batch.operations[before], model.records[before])
    }));
    text.push(format!("step {step}: {:x?}", batch.operations.get(step)));
    text.push(format!("  processor {found}"));
    text.push(format!("  model     {expected}"));
    text.extend(words(batch, &model, step, &lines));
    Some(Difference { step, lines: text })
}

/// The words of the page that the two do not have alike after a step.
fn words(batch: &Batch, model: &Replay, step: usize, lines: &[&str]) -> Vec<String> {
    let Some(expected) = model.pages.get(step) else { return Vec::new() };
    // Up to the step before they were alike.
    let mut found = match step.checked_sub(1) {
        Some(before) => model.pages[before].clone(),
        None => first_page(batch),
    };
    for line in lines.iter().filter(|line| line.contains("HIL-WORD ")) {
        let read = || {
            let number: usize = value(line, "step")?.parse().ok()?;
            let offset = usize::from_str_radix(value(line, "offset")?, 16).ok()?;
            Some((number, offset / 4, u32::from_str_radix(value(line, "word")?, 16).ok()?))
        };
        if let Some((number, index, word)) = read()
            && number == step
            && let Some(slot) = found.get_mut(index)
        {
            *slot = word;
        }
    }
    let differing =
        expected.iter().zip(&found).enumerate().filter(|(_, (expected, found))| expected != found);
    differing
        .map(|(index, (expected, found))| {
            format!("  page {:03x}: processor {found:08x}, model {expected:08x}", index * 4)
        })
        .collect()
}

fn first_page(batch: &Batch) -> Vec<u32> {
    let mut words = Vec::new();
    batch.initial_page(|offset, word| {
        if offset < 0x400 {
            words.push(word);
        }
    });
    words
}

/// What stands behind `key=`.
fn value<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
