//! Counting: each gated row inside one function that callgrind is told to watch.

use std::hint::black_box;

use anyhow::Result;

use crate::contender::Work;
use crate::row::Row;

/// How many operations are counted, if the row has no limit of its own: what comes but once, the call and the loop's
/// entry, is then lost in rounding.
const OPERATIONS: u32 = 200;

/// Prints a row before it is counted; callgrind writes one part a call of [`counted`], in the same order.
pub(crate) fn run(rows: &[Row]) -> Result<()> {
    for row in rows.iter().filter(|row| row.gated()) {
        let mut ours = row.contenders().ours;
        let operations = ours.limit.unwrap_or(if ours.parts == 1 { OPERATIONS } else { 10 });
        // The first pass takes what comes but once: resolving symbols, cold paths.
        ours.work.reset();
        ours.work.run(operations);
        ours.work.reset();
        counted(ours.work.as_mut(), operations);
        println!(
            "{}",
            serde_json::json!({ "id": row.id(), "operations": operations * ours.parts })
        );
    }
    Ok(())
}

/// What callgrind counts, and after which it writes down a part.
#[inline(never)]
fn counted(work: &mut dyn Work, operations: u32) {
    work.run(black_box(operations));
}
