//! IPIs: a write of the ICR or of the self-IPI register.

use std::collections::VecDeque;

use super::controls::Mode;
use super::exit::{IncompleteIpi, VmExit};
use super::guest::Guest;
use super::operation::{Operation, Progress};
use super::page::offset;
use super::tables::PhysicalEntry;

use crate::model::Page;

/// ICR bit 12.
const BUSY: u32 = 1 << 12;

/// An IPI on its way through the tables. Each access to memory is a step of its own, so that software and other cores
/// can act between any two.
#[derive(Debug)]
pub(super) struct Ipi {
    icr: u64,
    vector: u8,
    is_broadcast: bool,
    skips_sender: bool,
    lookups_come_first: bool,
    candidates: VecDeque<Candidate>,
    found: VecDeque<Target>,
    not_running: Option<u32>,
    stage: Stage,
}

/// A destination that still has to be looked up.
#[derive(Debug, Clone, Copy)]
enum Candidate {
    /// By its entry in the logical table.
    Logical(u32),
    /// By its entry in the physical table.
    Physical(u32),
}

/// A destination with a valid entry.
#[derive(Debug, Clone, Copy)]
struct Target {
    index: u32,
    /// The entry as the lookup saw it.
    entry: PhysicalEntry,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    LookUp,
    Request,
    CheckRunning(Target),
}

impl Guest<'_> {
    /// A write of the ICR's low half, whose high half is already known.
    pub(super) fn write_icr(&mut self, command: u32, high: u32) -> Progress {
        self.page.store(offset::ICR_LOW, command);
        self.send(command, high)
    }

    /// A write of the self-IPI register, given as the ICR write that would do the same.
    pub(super) fn write_self_ipi(&mut self, command: u32) -> Progress {
        self.page.store(offset::SELF_IPI, command & 0xff);
        self.send(command, 0)
    }

    fn send(&mut self, command: u32, high: u32) -> Progress {
        let vector = command as u8;
        let icr = u64::from(high) << 32 | u64::from(command);
        if let Some(cause) = self.refusal(command) {
            return self.incomplete(icr, cause);
        }
        let shorthand = command >> 18 & 3;
        if shorthand == 1 {
            self.page.set_vector(offset::IRR, vector);
            return Progress::Next(Operation::Evaluate);
        }
        let destination = match self.controls.mode {
            Mode::X2Avic => high,
            _ => high >> 24,
        };
        let logical = command >> 11 & 1 != 0;
        let is_broadcast = shorthand >= 2 || self.is_broadcast(destination, logical);
        let knobs = &self.around.knobs;
        let candidates = match (is_broadcast, logical) {
            (true, _) => (0..=self.controls.max_index).map(Candidate::Physical).collect(),
            (false, false) => VecDeque::from([Candidate::Physical(destination)]),
            (false, true) => match self.logical_candidates(destination) {
                Some(candidates) => candidates,
                None => {
                    let cause = IncompleteIpi::InvalidTarget { index: destination };
                    return self.incomplete(icr, cause);
                }
            },
        };
        let ipi = Ipi {
            icr,
            vector,
            is_broadcast,
            skips_sender: shorthand == 3 && knobs.others_excludes_self,
            lookups_come_first: if is_broadcast {
                knobs.broadcast_lookups_come_first
            } else {
                knobs.logical_lookups_come_first
            },
            candidates,
            found: VecDeque::new(),
            not_running: None,
            stage: Stage::LookUp,
        };
        Progress::Next(Operation::Ipi(ipi))
    }

    /// Why the command is not one that hardware carries out at all.
    fn refusal(&self, command: u32) -> Option<IncompleteIpi> {
        let delivery_mode = command >> 8 & 7;
        let is_level_triggered = command >> 15 & 1 != 0;
        let bad_type = delivery_mode != 0 || is_level_triggered;
        let bad_vector = command & 0xf0 == 0;
        match (bad_type, bad_vector) {
            (true, true) if self.around.knobs.vector_is_checked_before_type => {
                Some(IncompleteIpi::InvalidVector)
            }
            (true, _) => Some(IncompleteIpi::InvalidType),
            (false, true) => Some(IncompleteIpi::InvalidVector),
            (false, false) => None,
        }
    }

    fn is_broadcast(&self, destination: u32, logical: bool) -> bool {
        let all_ones = self.around.knobs.x2avic_broadcasts_all_ones;
        match (self.controls.mode, logical) {
            (Mode::X2Avic, false) => all_ones && destination == u32::MAX,
            (Mode::X2Avic, true) => all_ones && destination >> 16 == 0xffff,
            (_, false) => destination == 0xff,
            (_, true) => false,
        }
    }

    /// One candidate for each bit of a logical destination; `None` if it names a cluster that cannot be.
    fn logical_candidates(&self, destination: u32) -> Option<VecDeque<Candidate>> {
        let bits = |set: u32| (0..16).filter(move |bit| set >> bit & 1 != 0);
        if self.controls.mode == Mode::X2Avic {
            let cluster = destination >> 16;
            let id = |bit| Candidate::Physical(cluster << 4 | bit);
            return Some(bits(destination & 0xffff).map(id).collect());
        }
        let dfr = if self.around.knobs.dfr_is_read_at_each_ipi {
            self.page.load(offset::DFR)
        } else {
            self.dfr_at_vmrun
        };
        if dfr >> 28 == 0xf {
            return Some(bits(destination & 0xff).map(Candidate::Logical).collect());
        }
        let cluster = destination >> 4 & 0xf;
        let entry = |bit| Candidate::Logical(cluster * 4 + bit);
        (cluster != 0xf).then(|| bits(destination & 0xf).map(entry).collect())
    }

    /// The next step of an IPI.
    pub(super) fn step_ipi(&mut self, mut ipi: Ipi) -> Progress {
        let result = match ipi.stage {
            Stage::LookUp => self.look_up(&mut ipi),
            Stage::Request => {
                self.request(&mut ipi);
                Ok(())
            }
            Stage::CheckRunning(target) => {
                self.check_running(&mut ipi, target);
                Ok(())
            }
        };
        if let Err(cause) = result {
            return self.incomplete(ipi.icr, cause);
        }
        if ipi.candidates.is_empty() && ipi.found.is_empty() && ipi.is_between_targets() {
            return match ipi.not_running {
                Some(index) => self.incomplete(ipi.icr, IncompleteIpi::NotRunning { index }),
                None => Progress::DONE,
            };
        }
        Progress::Next(Operation::Ipi(ipi))
    }

    /// Reads one entry of one table.
    fn look_up(&self, ipi: &mut Ipi) -> Result<(), IncompleteIpi> {
        match ipi.candidates.pop_front() {
            None => {}
            Some(Candidate::Logical(number)) => {
                let entry = self.tables().logical(number);
                let id = entry.guest_id().ok_or(IncompleteIpi::InvalidTarget { index: number })?;
                ipi.candidates.push_front(Candidate::Physical(id));
                return Ok(());
            }
            Some(Candidate::Physical(index)) => self.look_up_physical(ipi, index)?,
        }
        if !ipi.found.is_empty() && (ipi.candidates.is_empty() || !ipi.lookups_come_first) {
            ipi.stage = Stage::Request;
        }
        Ok(())
    }

    fn look_up_physical(&self, ipi: &mut Ipi, index: u32) -> Result<(), IncompleteIpi> {
        let missing = IncompleteIpi::InvalidTarget { index };
        let reserved = match self.controls.mode {
            Mode::X2Avic => index == 255 && !self.around.knobs.x2avic_uses_entry_255,
            _ => index > 254,
        };
        let entry = (index <= self.controls.max_index && !reserved)
            .then(|| self.tables().physical(index))
            .filter(|entry| entry.is_valid());
        let Some(entry) = entry else {
            return if ipi.is_broadcast { Ok(()) } else { Err(missing) };
        };
        if ipi.skips_sender && entry.backing_page() == self.controls.backing_page {
            return Ok(());
        }
        if !self.around.capability.is_physical(entry.backing_page()) {
            return Err(IncompleteIpi::InvalidBackingPage { index });
        }
        ipi.found.push_back(Target { index, entry });
        Ok(())
    }

    /// Sets one target's IRR bit.
    fn request(&self, ipi: &mut Ipi) {
        let Some(target) = ipi.found.pop_front() else { return };
        let page = Page::new(self.around.memory.clone(), target.entry.backing_page());
        page.set_vector(offset::IRR, ipi.vector);
        ipi.stage = Stage::CheckRunning(target);
    }

    /// Looks whether a target runs, and rings the doorbell of its core.
    fn check_running(&self, ipi: &mut Ipi, target: Target) {
        let entry = if self.around.knobs.stale_is_running {
            target.entry
        } else {
            self.tables().physical(target.index)
        };
        if entry.is_running() {
            self.around.doorbells.ring(entry.host_id());
        } else if ipi.not_running.is_none() || !self.around.knobs.reports_first_not_running {
            ipi.not_running = Some(target.index);
        }
        ipi.stage = if ipi.found.is_empty() { Stage::LookUp } else { Stage::Request };
    }

    fn incomplete(&self, icr: u64, cause: IncompleteIpi) -> Progress {
        let busy = if self.around.knobs.busy_is_left_set { BUSY } else { 0 };
        self.page.store(offset::ICR_LOW, self.page.load(offset::ICR_LOW) | busy);
        let exit = VmExit::incomplete_ipi(icr | u64::from(busy), cause);
        Progress::Next(Operation::Trap(self.with_undefined_bits(exit)))
    }
}

impl Ipi {
    fn is_between_targets(&self) -> bool {
        !matches!(self.stage, Stage::CheckRunning(_))
    }
}
