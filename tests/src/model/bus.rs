//! Physical interrupts on their way from one core to another.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vlapic_hal::{SendError, SendInterrupt};

/// A physical interrupt that was sent and has not arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalInterrupt {
    /// Physical APIC ID of the target.
    pub destination: u32,
    /// Its vector.
    pub vector: u8,
}

/// The interrupts in flight between cores, in the order they were sent.
///
/// Nothing arrives by itself: a test, or [`Machine`](super::Machine), takes interrupts out and raises them at a core.
#[derive(Debug, Default)]
pub struct PhysicalBus {
    in_flight: Mutex<VecDeque<PhysicalInterrupt>>,
}

impl PhysicalBus {
    /// A bus with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an interrupt on the bus.
    pub fn send(&self, interrupt: PhysicalInterrupt) {
        self.queue().push_back(interrupt);
    }

    /// Takes the interrupt that was sent first.
    pub fn take(&self) -> Option<PhysicalInterrupt> {
        self.queue().pop_front()
    }

    /// Takes the interrupt at `index` in sending order, so that a schedule can let one overtake another.
    pub fn take_at(&self, index: usize) -> Option<PhysicalInterrupt> {
        self.queue().remove(index)
    }

    /// How many interrupts are in flight.
    pub fn len(&self) -> usize {
        self.queue().len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.queue().is_empty()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<PhysicalInterrupt>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SendInterrupt for PhysicalBus {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        if vector < 16 {
            return Err(SendError::Vector(vector));
        }
        self.send(PhysicalInterrupt { destination, vector });
        Ok(())
    }
}
