//! The guest's side.

use spin::Mutex;
use vlapic_core::ApicPage;
use vlapic_sequences::Operation;
use vlapic_sequences::apic::{HostOperation, STEPS};
use vlapic_sequences::vmx::List;

use super::super::perform::perform;
use super::super::shared;
use super::deviation::WORDS;
use super::remote;
use crate::guest::{Apic, Context, Eoi, apic, cpu, hypercall};

/// Asks for the next batch; 0 is the end.
pub(super) const NEXT_BATCH: u64 = hypercall::FIRST_FREE;
/// The host's part of the step in the first argument.
pub(super) const HOST_STEP: u64 = hypercall::FIRST_FREE + 1;

/// The batch that the guest is to do, and its page. Both sides take turns on one CPU, and no exit comes while it is locked.
pub(super) static BATCH: Mutex<Option<Batch>> = Mutex::new(None);

pub(super) struct Batch {
    pub(super) operations: [Operation<HostOperation>; STEPS],
    pub(super) page: &'static ApicPage,
}

/// What the guest saw of each step.
pub(super) static SEEN: Mutex<[Seen; STEPS]> = Mutex::new([Seen::NOTHING; STEPS]);

#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) value: u64,
    pub(super) fault: bool,
    pub(super) taken: Option<List<u8, 16>>,
    /// The first KiB of the page after the step.
    pub(super) page: [u32; WORDS],
}

impl Seen {
    const NOTHING: Self = Self { value: 0, fault: false, taken: None, page: [0; WORDS] };
}

/// Does batches until there are no more; the argument says whether in x2APIC mode.
pub(super) extern "C" fn program(context: &'static Context, x2apic: u64) -> u64 {
    const EXTD: u64 = 1 << 10;
    for vector in 16..=255 {
        context.set_handling(vector, Eoi::Never, Some(|_, vector| shared::note_taken(vector)));
    }
    if x2apic != 0 {
        let entered = cpu::read_msr(apic::APIC_BASE_MSR)
            .and_then(|base| cpu::write_msr(apic::APIC_BASE_MSR, base | EXTD));
        if entered.is_err() {
            return u64::from(line!());
        }
        context.set_apic(Apic::X2Apic);
    }
    while hypercall::call(NEXT_BATCH, 0, 0) != 0 {
        for step in 0..STEPS {
            self::step(step);
        }
    }
    0
}

fn step(step: usize) {
    let Some(operation) = BATCH.lock().as_ref().map(|batch| batch.operations[step]) else { return };
    shared::clear();
    let result = perform(operation, |operation| match operation {
        HostOperation::Remote(vector, level) if remote::is_there() => remote::ask(vector, level),
        _ => {
            hypercall::call(HOST_STEP, step as u64, 0);
        }
    });
    let batch = BATCH.lock();
    let mut seen = SEEN.lock();
    seen[step].value = result.unwrap_or(0);
    seen[step].fault = result.is_err();
    seen[step].taken = Some(shared::taken());
    if let Some(batch) = batch.as_ref() {
        for (offset, word) in (0..).step_by(4).zip(&mut seen[step].page) {
            *word = batch.page.load(offset);
        }
    }
}
