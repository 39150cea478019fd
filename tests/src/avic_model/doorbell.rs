//! Doorbells between cores.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vlapic_hal::{MsrError, WriteMsr};

use super::knobs::Knobs;

/// The doorbell register.
pub const DOORBELL_MSR: u32 = 0xc001_011b;

/// The doorbells in flight, by the physical APIC ID of the core they are for, in the order they were rung.
///
/// Nothing arrives by itself: a test, or [`Machine`](super::Machine), takes them out and lets them arrive at a core.
#[derive(Debug, Default)]
pub struct Doorbells {
    in_flight: Mutex<VecDeque<u32>>,
}

impl Doorbells {
    /// Nothing in flight.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Rings the doorbell of a core.
    pub fn ring(&self, destination: u32) {
        self.queue().push_back(destination);
    }

    /// Takes the doorbell that was rung first.
    pub fn take(&self) -> Option<u32> {
        self.queue().pop_front()
    }

    /// Takes the doorbell at `index` in ringing order, so that a schedule can let one overtake another.
    pub fn take_at(&self, index: usize) -> Option<u32> {
        self.queue().remove(index)
    }

    /// How many doorbells are in flight.
    pub fn len(&self) -> usize {
        self.queue().len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.queue().is_empty()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The doorbell register as host software on any core writes it.
#[derive(Debug, Clone)]
pub struct DoorbellRegister {
    doorbells: Arc<Doorbells>,
    wide_ids: bool,
}

impl DoorbellRegister {
    /// The register of a core that rings `doorbells`.
    #[must_use]
    pub fn new(doorbells: Arc<Doorbells>, knobs: Knobs) -> Self {
        DoorbellRegister { doorbells, wide_ids: knobs.doorbell_takes_wide_ids }
    }
}

impl WriteMsr for DoorbellRegister {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        if msr != DOORBELL_MSR {
            return Err(MsrError::Unavailable(msr));
        }
        let largest = if self.wide_ids { u64::from(u32::MAX) } else { 0xff };
        if value > largest {
            return Err(MsrError::GeneralProtection(msr));
        }
        self.doorbells.ring(value as u32);
        Ok(())
    }
}
