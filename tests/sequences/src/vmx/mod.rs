//! Operations below any driver: what the processor does with a guest's accesses under given controls, and with a host
//! that only follows a fixed script.
//!
//! The script: it changes the VMCS and the page when the sequence says so, and at no other time. An access that exits
//! before it is done is skipped and reads 0; after a TPR-below-threshold exit the threshold is 0; after an
//! interrupt-window exit the window control is 0; every other exit is only noted. Interrupt handlers of the guest note
//! their vector and return.

mod generate;
mod record;
mod setup;

pub use self::generate::Batch;
pub use self::record::{Exit, List, Record};
pub use self::setup::Setup;

/// Operations of one batch. Each batch begins with controls, page and guest of its own, so it can be repeated alone.
pub const STEPS: usize = 64;

/// The posted-interrupt notification vector.
pub const NOTIFICATION: u8 = 0xf2;

/// The vector of the interrupts that are the host's.
pub const HOST_VECTOR: u8 = 0xe4;

/// One step.
pub type Operation = crate::Operation<HostOperation>;

/// What the host does between two entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostOperation {
    /// Nothing: an exit and an entry.
    Nothing,
    /// Sets a vector in VIRR, and RVI if that is lower.
    Request(u8),
    /// Sets guest interrupt status to RVI and SVI.
    Status(u8, u8),
    /// Sets a bit of the EOI-exit bitmap, or clears it.
    EoiExit(u8, bool),
    /// Sets the TPR threshold; see [`Setup::threshold`].
    Threshold(u8),
    /// Sets interrupt-window exiting.
    Window,
    /// Posts a vector: PIR, then ON; the notification is sent to this very CPU if asked for.
    Post(u8, bool),
    /// Injects an external interrupt at the entry.
    Inject(u8),
    /// An interrupt for the host arrives.
    Interrupt,
    /// Stores a word in the page: byte offset, value.
    Page(u16, u32),
}
