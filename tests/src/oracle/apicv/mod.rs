//! The APICv model against a processor that has it: Bochs, or a real one.
//!
//! The image carries out seeded batches of operations under a script that has no policy and prints a digest of what it
//! observed; here the same batches are carried out on the model. A batch whose digests differ is asked for again, step by
//! step.
//!
//! ```text
//! replay      one batch on the model
//! deviation   where the processor is known to differ from the manual
//! compare     digests and steps as the image prints them
//! ```

mod compare;
mod deviation;
mod replay;

pub use compare::{Comparison, Difference, Mismatch, compare_digests, compare_steps};
pub use deviation::{Deviation, Quirks};
pub use replay::{Replay, replay};
