//! A whole VM from one way of running local APICs to another: what a hypervisor saves and restores.

use std::sync::atomic::Ordering;

use vlapic_core::Event;
use vlapic_core::state::STATE_LENGTH;

use crate::steps::{Seen, Subject};

/// A vCPU on its way.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The APIC, in our own format.
    pub state: [u8; STATE_LENGTH],
    /// RFLAGS.IF.
    pub interrupt_flag: bool,
    /// What it was doing.
    pub doing: Doing,
    /// The pending byte, which is the guest's memory.
    pub pending: u8,
    /// What the guest has seen, so that it can be compared afterwards.
    pub taken: Vec<u8>,
    /// As above.
    pub broadcasts: Vec<u8>,
    /// As above.
    pub events: Vec<Event>,
}

/// What a vCPU was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It ran.
    Running,
    /// It was in HLT.
    Halted,
    /// It waited for its SIPI.
    Waiting,
}

/// A VM that can be saved and restored.
pub trait Movable: Subject {
    /// The guest's TSC.
    fn now(&self) -> u64;

    /// Every vCPU, out of guest mode and saved.
    fn save(&mut self) -> Vec<Moved>;

    /// Every vCPU becomes what was saved; the guest's TSC is `now`.
    fn restore(&mut self, vcpus: &[Moved], now: u64);
}

impl Moved {
    /// The parts that all ways have in common.
    pub(crate) fn new(
        state: [u8; STATE_LENGTH],
        seen: &Seen<'_>,
        interrupt_flag: bool,
        doing: Doing,
        pending: &std::sync::atomic::AtomicU8,
    ) -> Self {
        Self {
            state,
            interrupt_flag,
            doing,
            pending: pending.load(Ordering::SeqCst),
            taken: seen.taken.to_vec(),
            broadcasts: seen.broadcasts.to_vec(),
            events: seen.events.to_vec(),
        }
    }
}
