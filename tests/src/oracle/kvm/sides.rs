//! Both sides of one VM: rounds and steps.

use std::time::{Duration, Instant};

use vlapic_core::{ApicBase, Mode, Register};

use super::deviation::{Deviation, Deviations, Step, explain, reserved};
use super::generate::Random;
use super::kernel::{Kernel, Unavailable};
use super::operation::Operation;
use super::ours::Ours;
use super::run::Difference;
use super::setup::{Setup, Start};
use super::state::{Answer, View};

/// Both sides of one kind of VM.
pub(super) struct Sides {
    pub(super) setup: Setup,
    pub(super) kernel: Kernel,
    pub(super) ours: Ours,
    /// What both look like, after the last step.
    pub(super) views: Vec<View>,
}

/// What a round came to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) operations: u64,
    pub(super) by_guest: u64,
    pub(super) comparisons: u64,
    pub(super) deviations: Deviations,
    pub(super) repeated: u64,
    /// After how many operations, and what.
    pub(super) difference: Option<(usize, Difference)>,
}

/// The shortest time in which a timer of the rounds can expire is 4.3 s.
const TOO_LONG: Duration = Duration::from_secs(3);

/// What is left after a step.
enum After {
    /// Go on.
    Same,
    /// A row explained a difference in who waits for a SIPI, or in what is held there: the rest of the
    /// round makes no sense.
    Apart,
    Different(Difference),
}

impl Sides {
    pub(super) fn new(setup: Setup) -> Result<Self, Unavailable> {
        let kernel = Kernel::new(&setup)?;
        let ours = Ours::new(setup.ids, setup.profile(kernel.physical_address_bits));
        Ok(Self { setup, kernel, ours, views: Vec::new() })
    }

    /// From RESET through `list`; once more if it took too long.
    pub(super) fn round(&mut self, start: Start, list: &[Operation]) -> Result<Found, Unavailable> {
        let mut repeated = 0;
        loop {
            let began = Instant::now();
            let mut found = self.round_once(start, list)?;
            // A host that stood still for seconds is no reason to give up for ever.
            if began.elapsed() < TOO_LONG || repeated == 5 {
                found.repeated = repeated;
                return Ok(found);
            }
            repeated += 1;
        }
    }

    fn round_once(&mut self, start: Start, list: &[Operation]) -> Result<Found, Unavailable> {
        self.reset(start)?;
        let mut found = Found::default();
        let mut apart = false;
        for (index, operation) in list.iter().enumerate() {
            if operation.vcpu().is_some_and(|vcpu| self.ours.waiting(vcpu)) {
                // It executes nothing.
                continue;
            }
            found.operations += 1;
            found.by_guest += u64::from(by_guest(operation));
            match self.step(operation, &mut found)? {
                After::Same => {}
                After::Apart => {
                    apart = true;
                    break;
                }
                After::Different(difference) => {
                    found.difference = Some((index + 1, difference));
                    break;
                }
            }
        }
        if found.difference.is_none() && !apart {
            found.difference = self.last_look(&mut found)?.map(|last| (list.len(), last));
        }
        Ok(found)
    }

    fn reset(&mut self, start: Start) -> Result<(), Unavailable> {
        self.views.clear();
        for vcpu in 0..self.setup.ids.len() {
            self.ours.reset(vcpu, start.mode(vcpu));
            self.kernel.reset(vcpu, self.ours.base(vcpu))?;
            let view = self.ours.view(vcpu);
            self.kernel.view(vcpu)?;
            self.kernel.store(vcpu, &view, start.mode(vcpu))?;
            self.views.push(view);
        }
        Ok(())
    }

    /// At a round's end nothing may have come that no operation could bring.
    fn last_look(&mut self, found: &mut Found) -> Result<Option<Difference>, Unavailable> {
        for vcpu in 0..self.setup.ids.len() {
            if self.ours.waiting(vcpu) {
                continue;
            }
            let ours = self.ours.events(vcpu);
            let kernel = self.kernel.events(vcpu, false)?;
            found.comparisons += 1;
            if ours != kernel {
                return Ok(Some(Difference::Events { vcpu, ours, kernel }));
            }
        }
        Ok(None)
    }

    /// Does `operation` to both sides and compares everything.
    fn step(&mut self, operation: &Operation, found: &mut Found) -> Result<After, Unavailable> {
        let bases: Vec<ApicBase> =
            (0..self.setup.ids.len()).map(|vcpu| self.ours.base(vcpu)).collect();
        let mut operation = *operation;
        if let Operation::Timer { vcpu, .. } = operation
            && let Some(difference) = self.timer(vcpu, &operation, &bases, found)?
        {
            return Ok(After::Different(difference));
        }
        let mut our_answer = self.do_ours(&operation);
        let kernel_answer = self.do_kernel(&operation)?;
        found.comparisons += 1;
        if our_answer.fault
            && !kernel_answer.fault
            && let Some((row, lenient)) = self.without_reserved(&operation, &bases)
        {
            // The kernel has done as if those bits had not been there: so does ours, now.
            found.deviations.count(row);
            operation = lenient;
            our_answer = self.do_ours(&operation);
        }
        let (mut ours, mut kernel) = (Vec::new(), Vec::new());
        let (events, init) = brings_events(&operation);
        for vcpu in 0..self.setup.ids.len() {
            let (mut our_events, mut its_events) = (None, None);
            if events {
                // First: INIT changes the page.
                our_events = Some(self.ours.events(vcpu));
                its_events = Some(self.kernel.events(vcpu, init)?);
            }
            let (mut our, mut its) = (self.ours.view(vcpu), self.kernel.view(vcpu)?);
            our.events = our_events.unwrap_or(our.events);
            its.events = its_events.unwrap_or(its.events);
            found.comparisons += 65;
            ours.push(our);
            kernel.push(its);
        }
        let mut step = Step {
            operation,
            setup: &self.setup,
            smm: self.kernel.smm,
            before: &self.views,
            bases: &bases,
            ours,
            kernel,
            our_answer,
            kernel_answer,
            unseen: false,
            several: None,
            rows: Vec::new(),
        };
        let difference = explain(&mut step);
        let Step { rows, unseen, kernel, .. } = step;
        let after = self.after(rows, difference, &kernel, found)?;
        Ok(if unseen && matches!(after, After::Same) { After::Apart } else { after })
    }

    /// Counts the rows, and gives the kernel's vCPUs what ours have where a row let them differ.
    fn after(
        &mut self,
        rows: Vec<Deviation>,
        difference: Option<Difference>,
        kernel: &[View],
        found: &mut Found,
    ) -> Result<After, Unavailable> {
        if let Some(difference) = difference {
            return Ok(After::Different(difference));
        }
        let explained = !rows.is_empty();
        for row in rows {
            found.deviations.count(row);
        }
        let mut apart = false;
        for (vcpu, its) in kernel.iter().enumerate() {
            let view = self.ours.view(vcpu);
            if explained {
                apart |= its.events.waiting != view.events.waiting;
                if !same_page(&view, its) {
                    self.kernel.store(vcpu, &view, self.ours.base(vcpu).mode())?;
                }
            }
            self.views[vcpu] = view;
        }
        Ok(if apart { After::Apart } else { After::Same })
    }

    pub(super) fn do_ours(&mut self, operation: &Operation) -> Answer {
        match *operation {
            Operation::WriteMsr { vcpu, msr, value, .. } => self.ours.write_msr(vcpu, msr, value),
            Operation::ReadMsr { vcpu, msr, .. } => self.ours.read_msr(vcpu, msr),
            Operation::Store { vcpu, address, size, value } => {
                self.ours.store_memory(vcpu, address, size, value)
            }
            Operation::Load { vcpu, address, size } => self.ours.load_memory(vcpu, address, size),
            Operation::WriteCr8 { vcpu, value } => self.ours.write_cr8(vcpu, value),
            Operation::Msi { address, data } => self.ours.msi(address, data),
            Operation::Take { vcpu } => {
                let _ = self.ours.take(vcpu);
                Answer::default()
            }
            Operation::Restore { vcpu, seed } => {
                if let Some(view) = self.restored(vcpu, seed) {
                    self.ours.store(vcpu, &view);
                }
                Answer::default()
            }
            Operation::Timer { .. } => Answer::default(),
        }
    }

    pub(super) fn do_kernel(&mut self, operation: &Operation) -> Result<Answer, Unavailable> {
        match *operation {
            Operation::WriteMsr { vcpu, msr, value, in_guest } => {
                self.kernel.write_msr(vcpu, msr, value, in_guest)
            }
            Operation::ReadMsr { vcpu, msr, in_guest } => self.kernel.read_msr(vcpu, msr, in_guest),
            Operation::Store { vcpu, address, size, value } => {
                self.kernel.store_memory(vcpu, address, size, value)
            }
            Operation::Load { vcpu, address, size } => self.kernel.load_memory(vcpu, address, size),
            Operation::WriteCr8 { vcpu, value } => self.kernel.write_cr8(vcpu, value),
            Operation::Msi { address, data } => self.kernel.msi(address, data),
            // No guest takes interrupts there: the vector that ours took from IRR to ISR moves
            // there too. Which one it had to be follows from registers already compared.
            Operation::Take { vcpu } => {
                let mut view = self.views[vcpu];
                let ours = self.ours.view(vcpu);
                if ours != view {
                    for slot in 0x10..0x28 {
                        view.words[slot] = ours.words[slot];
                    }
                    self.kernel.store(vcpu, &view, self.ours.base(vcpu).mode())?;
                }
                Ok(Answer::default())
            }
            Operation::Restore { vcpu, seed } => {
                if let Some(view) = self.restored(vcpu, seed) {
                    self.kernel.store(vcpu, &view, self.ours.base(vcpu).mode())?;
                }
                Ok(Answer::default())
            }
            Operation::Timer { .. } => Ok(Answer::default()),
        }
    }

    /// The state that an import brings; none where there is no APIC.
    fn restored(&self, vcpu: usize, seed: u64) -> Option<View> {
        if !self.ours.base(vcpu).present() {
            return None;
        }
        let mut random = Random::new(seed);
        let mut view = self.views[vcpu];
        for slot in 0x10..0x28 {
            // Few bits, and none below vector 16.
            let bits = (random.bits() & random.bits() & random.bits() & random.bits()) as u32;
            view.words[slot] = if slot & 7 == 0 { bits & 0xFFFF_0000 } else { bits };
        }
        view.set_word(Register::Tpr, random.bits() as u32 & 0xFF);
        Some(view)
    }

    /// `operation` without the bits that must be zero and that the kernel drops, and the row.
    fn without_reserved(
        &self,
        operation: &Operation,
        bases: &[ApicBase],
    ) -> Option<(Deviation, Operation)> {
        let Operation::WriteMsr { vcpu, msr, value, in_guest } = *operation else { return None };
        let register = Register::from_msr(msr)?;
        let bits = reserved(register, &self.setup);
        if value & bits == 0 || value >> 32 != 0 || bases[vcpu].mode() != Mode::X2Apic {
            return None;
        }
        let row = match register {
            Register::Eoi => Deviation::EoiValue,
            _ => Deviation::ReservedBits,
        };
        Some((row, Operation::WriteMsr { vcpu, msr, value: value & !bits, in_guest }))
    }
}

const fn by_guest(operation: &Operation) -> bool {
    match *operation {
        Operation::Store { .. } | Operation::Load { .. } => true,
        Operation::WriteMsr { in_guest, .. } | Operation::ReadMsr { in_guest, .. } => in_guest,
        _ => false,
    }
}

/// Whether something beside a vector may come of it, and whether that may be an INIT.
const fn brings_events(operation: &Operation) -> (bool, bool) {
    let mode = match *operation {
        Operation::Msi { data, .. } => data,
        Operation::WriteMsr { value, .. } => value as u32,
        Operation::Store { value, .. } => value,
        _ => 0,
    };
    (mode & 0x600 != 0, mode & 0x700 == 0x500)
}

/// But for what is each side's own.
fn same_page(ours: &View, kernel: &View) -> bool {
    let mut kernel = *kernel;
    for register in [Register::Version, Register::Esr] {
        kernel.set_word(register, ours.word(register));
    }
    ours.words == kernel.words
}
