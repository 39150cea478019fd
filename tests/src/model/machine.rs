//! Several cores on one bus, stepped by a schedule that can be replayed.

use std::sync::Arc;

use crate::schedule::Schedule;

use super::bus::PhysicalBus;
use super::capability::Capability;
use super::core::Core;
use super::exit::Outcome;
use super::knobs::Knobs;
use super::memory::Memory;

/// Cores that share memory and send each other physical interrupts.
///
/// Nothing moves by itself: the test steps a core, or lets an interrupt in flight arrive. [`pick`](Machine::pick)
/// gives the choices of a seeded schedule; the same seed replays the same run.
#[derive(Debug)]
pub struct Machine<'m> {
    /// The cores; core `i` has physical APIC ID `i`.
    pub cores: Vec<Core<'m>>,
    memory: Arc<Memory<'m>>,
    bus: Arc<PhysicalBus>,
    schedule: Schedule,
}

impl<'m> Machine<'m> {
    /// `count` like cores in root operation.
    pub fn new(
        count: u32,
        memory: Arc<Memory<'m>>,
        capability: Capability,
        knobs: Knobs,
        seed: u64,
    ) -> Self {
        let bus = Arc::new(PhysicalBus::new());
        let core = |id| Core::new(id, memory.clone(), bus.clone(), capability, knobs);
        Machine {
            cores: (0..count).map(core).collect(),
            memory,
            bus,
            schedule: Schedule::new(seed),
        }
    }

    /// The memory that all cores share.
    pub fn memory(&self) -> &Arc<Memory<'m>> {
        &self.memory
    }

    /// The interrupts in flight; a driver under test sends through it.
    pub fn bus(&self) -> &Arc<PhysicalBus> {
        &self.bus
    }

    /// The next number of the schedule, below `bound`.
    pub fn pick(&mut self, bound: usize) -> usize {
        self.schedule.pick(bound)
    }

    /// Lets one interrupt in flight, chosen by the schedule, reach its core. Returns the core's index and what it did.
    ///
    /// An interrupt to an APIC ID that no core has is lost.
    pub fn arrive(&mut self) -> Option<(usize, Outcome)> {
        let in_flight = self.bus.len();
        if in_flight == 0 {
            return None;
        }
        let chosen = self.pick(in_flight);
        let interrupt = self.bus.take_at(chosen)?;
        let index = self.cores.iter().position(|core| core.id() == interrupt.destination)?;
        Some((index, self.cores[index].external_interrupt(interrupt.vector)))
    }
}
