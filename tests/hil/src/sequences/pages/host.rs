//! The host's side: its part of each batch, and the comparison after it.

use core::sync::atomic::Ordering;

use spin::Mutex;
use vlapic_core::{Address, Delivery, Destination, Inbox, Message, Register, Trigger};
use vlapic_sequences::Operation;
use vlapic_sequences::apic::{Generator, HostOperation, STEPS, UPCALL};

use super::deviation::{Row, Rows, WORDS, is_compared};
use super::guest::{BATCH, Batch, HOST_STEP, NEXT_BATCH, SEEN, Seen};
use super::reference::Reference;
use super::remote;
use crate::cases::{Failure, Mode, Setting};
use crate::hypervisor::{VirtualMachine, reference_slots};
use crate::println;

/// The comparison under way. Cases run one by one, and the only vCPU on this CPU.
static COMPARISON: Mutex<Option<Comparison>> = Mutex::new(None);

struct Comparison {
    setting: Setting,
    seed: u64,
    generator: Generator,
    reference: Reference,
    batches: u64,
    summary: Summary,
}

/// What came of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Summary {
    pub(super) operations: u64,
    pub(super) comparisons: u64,
    pub(super) mismatches: u64,
    pub(super) taken: u64,
    pub(super) deviations: Rows,
}

/// Readies both sides.
pub(super) fn begin(
    machine: &'static VirtualMachine,
    setting: Setting,
    seed: u64,
    batches: u64,
) -> Result<(), Failure> {
    const ENABLED: u32 = 0x1ff;
    let x2apic = setting.mode == Mode::X2Apic;
    // As many as in the VM: who wins among equals depends on it.
    let slots = &reference_slots(machine.config.profile)[..machine.slots.len()];
    let reference = Reference::new(slots, x2apic, setting.level.delivers())
        .ok_or(Failure::Wrong("no reference"))?;
    for page in [machine.slots[1].page(), reference.page(1)] {
        page.write(Register::Svr, ENABLED);
    }
    let registered = machine.slot(0).register_upcall(UPCALL, &machine.pending[0]);
    let _ = registered.map_err(|_| Failure::Wrong("an illegal upcall vector"))?;
    *BATCH.lock() = None;
    *COMPARISON.lock() = Some(Comparison {
        setting,
        seed,
        generator: Generator::new(seed, x2apic),
        reference,
        batches,
        summary: Summary::default(),
    });
    Ok(())
}

/// What came of it.
pub(super) fn end() -> Summary {
    let comparison = COMPARISON.lock().take();
    comparison.map_or_else(Summary::default, |comparison| Summary {
        deviations: comparison.reference.rows,
        ..comparison.summary
    })
}

/// The guest asks.
pub(super) fn on_call(
    machine: &VirtualMachine,
    _: usize,
    operation: u64,
    first: u64,
    _: u64,
) -> u64 {
    match operation {
        NEXT_BATCH => COMPARISON.lock().as_mut().map_or(0, |comparison| comparison.next(machine)),
        HOST_STEP => {
            let step = BATCH
                .lock()
                .as_ref()
                .and_then(|batch| batch.operations.get(first as usize).copied());
            if let Some(Operation::Host(operation)) = step {
                host(machine, operation);
            }
            0
        }
        _ => 0,
    }
}

/// The host's part, in the VM.
fn host(machine: &VirtualMachine, operation: HostOperation) {
    match operation {
        HostOperation::Nothing => {}
        HostOperation::Edge(vector) => {
            machine.carry_out(0, machine.slot(0).request(vector, Trigger::Edge))
        }
        HostOperation::Level(vector) => {
            machine.carry_out(0, machine.slot(0).request(vector, Trigger::Level))
        }
        // There is no other CPU.
        HostOperation::Remote(vector, level) => remote::request(machine, vector, level),
        HostOperation::Message { vector, lowest, destination } => {
            machine.send(&message(vector, lowest, destination), None);
        }
        HostOperation::Upcall => {
            machine.notify(0, machine.slot(0).notify_upcall(&machine.pending[0]));
        }
        HostOperation::ClearPending => machine.pending[0].store(0, Ordering::SeqCst),
    }
}

/// The host's part, in the reference.
fn host_of_reference(reference: &mut Reference, operation: HostOperation) {
    let request = |vector, trigger| {
        let _ = reference.slots[0].request(vector, trigger);
    };
    match operation {
        HostOperation::Nothing => {}
        HostOperation::Edge(vector) => request(vector, Trigger::Edge),
        HostOperation::Level(vector) => request(vector, Trigger::Level),
        HostOperation::Remote(vector, level) => request(vector, remote::trigger(level)),
        HostOperation::Message { vector, lowest, destination } => {
            reference.send(&message(vector, lowest, destination), None);
        }
        HostOperation::Upcall => reference.notify_upcall(),
        HostOperation::ClearPending => reference.clear_pending(),
    }
}

fn message(vector: u8, lowest: bool, destination: u8) -> Message {
    let trigger = Trigger::Edge;
    Message::new(
        if lowest {
            Delivery::LowestPriority { vector, trigger }
        } else {
            Delivery::Fixed { vector, trigger }
        },
        Destination::Logical(Address::Narrow(destination)),
    )
}

impl Comparison {
    /// Compares the batch that the guest has done and makes the next one; 0 if there is none.
    fn next(&mut self, machine: &VirtualMachine) -> u64 {
        if let Some(done) = BATCH.lock().take() {
            self.compare(machine, &done);
        }
        if self.batches == 0 || self.summary.mismatches != 0 {
            return 0;
        }
        self.batches -= 1;
        let mut operations = [Operation::ReadCr8; STEPS];
        operations.fill_with(|| self.generator.operation());
        *BATCH.lock() = Some(Batch { operations, page: machine.slots[0].page() });
        1
    }

    fn compare(&mut self, machine: &VirtualMachine, batch: &Batch) {
        let seen = SEEN.lock();
        for (step, (&operation, seen)) in batch.operations.iter().zip(seen.iter()).enumerate() {
            self.summary.operations += 1;
            self.summary.comparisons += WORDS as u64 + 2;
            let result = self.reference.step(operation, host_of_reference);
            self.summary.taken += self.reference.taken.count() as u64;
            if let Some(difference) = self.difference(operation, result.map_err(drop), seen) {
                self.report(step, batch, &difference);
                return;
            }
        }
        drop(seen);
        self.compare_rest(machine, batch);
    }

    /// What the guest saw of one step and should not.
    fn difference(
        &mut self,
        operation: Operation<HostOperation>,
        expected: Result<u64, ()>,
        seen: &Seen,
    ) -> Option<Difference> {
        const CURRENT_COUNT: [Operation<HostOperation>; 2] =
            [Operation::Load(0x390, 4), Operation::ReadMsr(0x839)];
        let found = if seen.fault { Err(()) } else { Ok(seen.value) };
        let same = match (found, expected) {
            // It counts on: only whether it counts is the same.
            (Ok(found), Ok(expected)) if CURRENT_COUNT.contains(&operation) => {
                (found == 0) == (expected == 0)
            }
            (found, expected) => found == expected,
        };
        if !same {
            let [found, expected] = [found, expected].map(|result| result.unwrap_or(u64::MAX));
            return Some(Difference { what: "answer", at: 0, found, expected });
        }
        let taken = seen.taken.unwrap_or_default();
        if taken != self.reference.taken {
            let [found, expected] = [taken, self.reference.taken].map(|list| {
                list.items().iter().fold(0, |all, &vector| all << 8 | u64::from(vector))
            });
            return Some(Difference { what: "interrupts", at: 0, found, expected });
        }
        self.different_word(&seen.page)
    }

    fn different_word(&mut self, found: &[u32; WORDS]) -> Option<Difference> {
        const SELF_IPI: u16 = 0x3f0;
        let page = self.reference.page(0);
        for (offset, &found) in
            (0..).step_by(4).zip(found).filter(|&(offset, _)| is_compared(offset))
        {
            let expected = page.load(offset);
            if found == expected {
                continue;
            }
            if offset == SELF_IPI
                && self.setting.mode == Mode::X2Apic
                && self.setting.level.delivers()
            {
                self.reference.rows.add(Row::MsrNotStored);
                page.store(offset, found);
                continue;
            }
            let (found, expected) = (found.into(), expected.into());
            return Some(Difference { what: "page", at: offset, found, expected });
        }
        None
    }

    /// What the guest does not see: EOIs, and the other vCPU, which then is as new.
    fn compare_rest(&mut self, machine: &VirtualMachine, batch: &Batch) {
        let other = &machine.slots[1];
        other.inbox().collect(other.page());
        let found = other.page();
        let expected = self.reference.page(1);
        let mut difference = None;
        for offset in (0..0x400).step_by(4).filter(|&offset| is_compared(offset)) {
            self.summary.comparisons += 1;
            let (found, expected) = (found.load(offset), expected.load(offset));
            if found != expected && difference.is_none() {
                let (found, expected) = (found.into(), expected.into());
                difference = Some(Difference { what: "other page", at: offset, found, expected });
            }
        }
        for (vector, expected) in (0..).zip(self.reference.eois) {
            self.summary.comparisons += 1;
            let found = machine.eois[usize::from(vector)].load(Ordering::SeqCst);
            if found != expected && difference.is_none() {
                let (found, expected) = (found.into(), expected.into());
                difference = Some(Difference { what: "EOIs", at: vector, found, expected });
            }
        }
        for page in [found, expected] {
            page.irr().clear();
        }
        if let Some(difference) = difference {
            self.report(STEPS - 1, batch, &difference);
        }
    }

    fn report(&mut self, step: usize, batch: &Batch, difference: &Difference) {
        self.summary.mismatches += 1;
        let number = self.summary.operations - 1;
        let Difference { what, at, found, expected } = difference;
        let (level, mode) = (self.setting.level.name(), self.setting.mode.name());
        println!(
            "HIL-MISMATCH oracle=apicv-page/{level} seed={} step={number} note={mode}: {what} {at:#x}: {found:#x}, must be {expected:#x}, after {:x?}",
            self.seed,
            &batch.operations[step.saturating_sub(5)..=step]
        );
    }
}

struct Difference {
    what: &'static str,
    at: u16,
    found: u64,
    expected: u64,
}
