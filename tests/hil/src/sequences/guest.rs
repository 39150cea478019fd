//! The guest's side: it carries out the operations of each batch and records what comes of them.

use core::sync::atomic::Ordering;

use vlapic_sequences::Digest;
use vlapic_sequences::vmx::{Record, STEPS};

use super::perform::perform;
use super::shared::{self, KEEP_PAGES, PAGE, RESULTS};
use crate::guest::{Context, Eoi, cpu, hypercall};

/// Asks for the next batch and gives the digest of the one before: 0 is the end.
pub(super) const NEXT_BATCH: u64 = hypercall::FIRST_FREE;
/// The host's part of the step in the first argument.
pub(super) const HOST_STEP: u64 = hypercall::FIRST_FREE + 1;

/// Does batches until there are no more.
pub(super) extern "C" fn program(context: &'static Context, _: u64) -> u64 {
    for vector in 16..=255 {
        context.set_handling(vector, Eoi::Never, Some(|_, vector| shared::note_taken(vector)));
    }
    let mut digest = 0;
    while hypercall::call(NEXT_BATCH, digest, 0) != 0 {
        digest = batch();
    }
    0
}

fn batch() -> u64 {
    let mut digest = Digest::new();
    for step in 0..STEPS {
        let Some(operation) = shared::operation(step) else { break };
        shared::clear();
        let result = perform(operation, |_| {
            hypercall::call(HOST_STEP, step as u64, 0);
        });
        let record = Record {
            value: result.unwrap_or(0),
            fault: result.is_err(),
            taken: shared::taken(),
            exits: shared::exits(),
            page: Record::page_digest(|offset| PAGE.load(offset)),
        };
        record.add_to(&mut digest);
        keep(step, record);
    }
    cpu::interrupts_off();
    digest.value()
}

/// For a host that is asked for each step.
fn keep(step: usize, record: Record) {
    let mut results = RESULTS.lock();
    if let Some(slot) = results.records.get_mut(step) {
        *slot = Some(record);
    }
    if KEEP_PAGES.load(Ordering::Relaxed)
        && let Some(page) = results.pages.get_mut(step)
    {
        for (offset, word) in (0..).step_by(4).zip(page) {
            *word = PAGE.load(offset);
        }
    }
}
