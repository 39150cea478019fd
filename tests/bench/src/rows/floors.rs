//! The floors themselves, each beside one page load.

use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("page-load", floor::page_load),
        row("locked-or", floor::locked_or),
        row("locked-or-and", floor::or_and),
        row("two-locked-ors", floor::two_locked_ors),
        row("fence", floor::fence_seq_cst),
        row("scan", floor::scan),
        row("drain-by-loads", floor::drain_by_loads),
    ]
}

fn row(name: &str, floor: fn() -> Contender) -> Row {
    let make = move || Contenders::ours(floor()).floor(floor::page_load());
    Row::new("floor", name, Mode::None, floor().what, make).not_gated()
}
