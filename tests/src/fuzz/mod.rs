//! Hostile input: what the fuzz targets under `tests/fuzz` do with their bytes, for anybody to call.
//!
//! A target takes any bytes as a sequence of operations and asserts, after each, what must hold whatever a guest, or
//! another vCPU, does: nothing panics, work is bounded, a vector below 16 is delivered to nobody, nothing leads out of
//! the VM, and what hardware is told is what it would accept.

mod equivalence;
mod import;
mod operations;
mod plain;
mod scribble;
mod svm;
mod vmx;

pub use equivalence::equivalence;
pub use import::import;
pub use operations::operations;
pub use scribble::scribble;
pub use svm::svm;
pub use vmx::vmx;

/// What a target does with its bytes. Bytes that come to nothing are not remembered.
pub type Target = fn(&[u8]);

/// Every target, by its name under `tests/fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 6] = [
    ("operations", operations),
    ("equivalence", equivalence),
    ("scribble", scribble),
    ("import", import),
    ("vmx", vmx),
    ("svm", svm),
];

/// The inputs in a corpus file: before each its length, two bytes, little-endian.
#[must_use]
pub fn unpack(mut corpus: &[u8]) -> Vec<&[u8]> {
    let mut inputs = Vec::new();
    while let Some((length, rest)) = corpus.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (input, rest) = rest.split_at(length);
        inputs.push(input);
        corpus = rest;
    }
    inputs
}

/// More operations than this are not carried out: a run is short, so that many are made.
const OPERATIONS: usize = 256;
