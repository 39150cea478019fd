//! The machine code of the interrupt path: built as users build it, then read.

mod build;
mod graph;
mod library;
mod listing;
mod snapshot;

pub(crate) use build::{build, cannot_be_read, compiler};
pub(crate) use graph::Graph;
pub(crate) use library::Library;
pub(crate) use listing::listing;
pub(crate) use snapshot::{Snapshot, State};

/// Where a symbol of the library belongs: the crate whose entry point it is.
pub(crate) const CRATES: [&str; 3] = ["core", "apicv", "avic"];

/// The symbols that have their expected code in `tests/codegen/expected`.
pub(crate) const SNAPSHOTS: &str = "code_";
