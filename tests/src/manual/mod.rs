//! What the manuals say, written out again as tables: a judge of the crates that shares none of
//! their code. Only the types of what comes out are theirs.

pub mod base;
pub mod destination;
pub mod icr;
pub mod priority;
pub mod registers;
