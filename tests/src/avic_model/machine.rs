//! Several cores, stepped by a schedule that can be replayed.

use std::ops::Range;
use std::sync::Arc;

use crate::model::{Memory, PhysicalBus};
use crate::schedule::Schedule;

use super::capability::Capability;
use super::core::Core;
use super::doorbell::Doorbells;
use super::exit::Outcome;
use super::iommu::Iommu;
use super::knobs::Knobs;
use super::nested::NestedPages;

/// Cores that share memory, doorbells and physical interrupts, and an IOMMU.
///
/// Nothing moves by itself. [`advance`](Machine::advance) lets the schedule choose among everything that is under way;
/// between two calls the test is free to start operations and to do what host software does.
#[derive(Debug)]
pub struct Machine<'m> {
    /// The cores; core `i` has physical APIC ID `i`, if the machine was not made with others.
    pub cores: Vec<Core<'m>>,
    /// The IOMMU.
    pub iommu: Iommu<'m>,
    /// The schedule. A test takes its own choices from it too, so that one seed replays everything.
    pub schedule: Schedule,
    memory: Arc<Memory<'m>>,
    doorbells: Arc<Doorbells>,
    nested: Arc<NestedPages>,
    bus: Arc<PhysicalBus>,
    late_doorbells: bool,
}

/// What [`Machine::advance`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A core made one step of its operation; with an outcome if that was the last.
    Step {
        /// Index of the core.
        core: usize,
        /// How the operation ended, if it did.
        outcome: Option<Outcome>,
    },
    /// A doorbell arrived, or was lost because no core has its APIC ID.
    Doorbell {
        /// The physical APIC ID it was for.
        destination: u32,
    },
    /// A physical interrupt arrived, or was lost because no core has its APIC ID.
    Interrupt {
        /// The physical APIC ID it was for.
        destination: u32,
    },
    /// The IOMMU made one step.
    Iommu,
}

/// What can move.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Step(usize),
    Doorbell(usize),
    Interrupt(usize),
    Iommu(usize),
}

impl<'m> Machine<'m> {
    /// `count` like cores in host mode.
    #[must_use]
    pub fn new(
        count: u32,
        memory: Arc<Memory<'m>>,
        capability: Capability,
        knobs: Knobs,
        seed: u64,
    ) -> Self {
        Self::with_ids(0..count, memory, capability, knobs, seed)
    }

    /// A core for each of these physical APIC IDs.
    #[must_use]
    pub fn with_ids(
        ids: Range<u32>,
        memory: Arc<Memory<'m>>,
        capability: Capability,
        knobs: Knobs,
        seed: u64,
    ) -> Self {
        let doorbells = Arc::new(Doorbells::new());
        let nested = Arc::new(NestedPages::new());
        let bus = Arc::new(PhysicalBus::new());
        let core = |id| {
            Core::new(id, memory.clone(), doorbells.clone(), nested.clone(), capability, knobs)
        };
        Machine {
            cores: ids.map(core).collect(),
            iommu: Iommu::new(memory.clone(), doorbells.clone(), bus.clone(), &knobs),
            schedule: Schedule::new(seed),
            memory: memory.clone(),
            doorbells: doorbells.clone(),
            nested: nested.clone(),
            bus,
            late_doorbells: knobs.late_doorbells,
        }
    }

    /// The memory that everything shares.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory<'m>> {
        &self.memory
    }

    /// The doorbells in flight.
    #[must_use]
    pub fn doorbells(&self) -> &Arc<Doorbells> {
        &self.doorbells
    }

    /// The nested page tables of all guests.
    #[must_use]
    pub fn nested(&self) -> &Arc<NestedPages> {
        &self.nested
    }

    /// The physical interrupts in flight.
    #[must_use]
    pub fn bus(&self) -> &Arc<PhysicalBus> {
        &self.bus
    }

    /// Lets one thing that is under way move: a core with an operation, a doorbell or an interrupt in flight, or the
    /// IOMMU. `None` if nothing is under way.
    ///
    /// Doorbells come before anything else, in the order they were rung, unless [`Knobs::late_doorbells`] leaves them
    /// to the schedule.
    pub fn advance(&mut self) -> Option<Event> {
        if !self.late_doorbells && !self.doorbells.is_empty() {
            return self.carry_out(Choice::Doorbell(0));
        }
        let busy = (0..self.cores.len()).filter(|core| self.cores[*core].is_busy());
        let choices: Vec<_> = busy
            .map(Choice::Step)
            .chain((0..self.doorbells.len()).map(Choice::Doorbell))
            .chain((0..self.bus.len()).map(Choice::Interrupt))
            .chain((0..self.iommu.in_flight()).map(Choice::Iommu))
            .collect();
        if choices.is_empty() {
            return None;
        }
        let chosen = self.schedule.pick(choices.len());
        self.carry_out(choices[chosen])
    }

    /// Lets everything that is under way come to its end. Returns what operations ended with, in that order, by core.
    pub fn settle(&mut self) -> Vec<(usize, Outcome)> {
        let mut ended = Vec::new();
        while let Some(event) = self.advance() {
            if let Event::Step { core, outcome: Some(outcome) } = event {
                ended.push((core, outcome));
            }
        }
        ended
    }

    fn carry_out(&mut self, choice: Choice) -> Option<Event> {
        Some(match choice {
            Choice::Step(core) => Event::Step { core, outcome: self.cores[core].step() },
            Choice::Doorbell(index) => {
                let destination = self.doorbells.take_at(index)?;
                if let Some(core) = self.core_with(destination) {
                    core.doorbell();
                }
                Event::Doorbell { destination }
            }
            Choice::Interrupt(index) => {
                let interrupt = self.bus.take_at(index)?;
                if let Some(core) = self.core_with(interrupt.destination) {
                    core.physical_interrupt(interrupt.vector);
                }
                Event::Interrupt { destination: interrupt.destination }
            }
            Choice::Iommu(index) => {
                self.iommu.step(index);
                Event::Iommu
            }
        })
    }

    fn core_with(&mut self, id: u32) -> Option<&mut Core<'m>> {
        self.cores.iter_mut().find(|core| core.id() == id)
    }
}
