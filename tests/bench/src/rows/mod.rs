//! The rows, by what they are about.

mod amd;
mod floors;
mod intel;
mod ipi;
mod local;
mod posting;
mod routing;
mod state;
mod threads;
mod upcall;

use crate::row::Row;

/// All rows, in the order of the table.
pub(crate) fn all() -> Vec<Row> {
    let groups = [
        floors::rows(),
        local::rows(),
        ipi::rows(),
        routing::rows(),
        posting::rows(),
        intel::rows(),
        amd::rows(),
        upcall::rows(),
        state::rows(),
        threads::rows(),
    ];
    groups.into_iter().flatten().collect()
}
