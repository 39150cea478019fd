//! The rows, by what they are about.

mod floors;
mod ipi;
mod local;
mod posting;

use crate::row::Row;

/// All rows, in the order of the table.
pub(crate) fn all() -> Vec<Row> {
    [floors::rows(), local::rows(), ipi::rows(), posting::rows()].into_iter().flatten().collect()
}
