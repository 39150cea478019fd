//! What guest and host share. They take turns on one CPU, so nothing here orders anything; the locks are free whenever an
//! exit can happen, and the guest's interrupt handlers use none.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use spin::Mutex;
use vlapic_core::ApicPage;
use vlapic_sequences::vmx::{Batch, Exit, List, Operation, Record, STEPS};

/// The virtual-APIC page.
pub(super) static PAGE: ApicPage = ApicPage::new();
/// Accesses to it are the processor's to catch; nothing is ever stored in it.
pub(super) static ACCESS_PAGE: ApicPage = ApicPage::new();

/// A posted-interrupt descriptor in a page of its own, which Bochs 3.0 asks for (defect D4).
#[repr(C, align(4096))]
pub(super) struct Descriptor(pub(super) [AtomicU64; 512]);

pub(super) static DESCRIPTOR: Descriptor = Descriptor([const { AtomicU64::new(0) }; 512]);

/// The batch that the guest is to do.
pub(super) static BATCH: Mutex<Option<Batch>> = Mutex::new(None);

/// Whether the page is kept after each step.
pub(super) static KEEP_PAGES: AtomicBool = AtomicBool::new(false);

/// What was observed of the batch.
pub(super) static RESULTS: Mutex<Results> =
    Mutex::new(Results { records: [None; STEPS], pages: [[0; WORDS]; STEPS] });

pub(super) struct Results {
    pub(super) records: [Option<Record>; STEPS],
    /// The first KiB of the page after each step.
    pub(super) pages: [[u32; WORDS]; STEPS],
}

/// The operation with this index.
pub(super) fn operation(step: usize) -> Option<Operation> {
    BATCH.lock().as_ref().and_then(|batch| batch.operations.get(step).copied())
}

/// Words of the page that are kept of each step: the first KiB.
pub(super) const WORDS: usize = 256;

const KEPT: usize = 16;

static TAKEN: [AtomicU8; KEPT] = [const { AtomicU8::new(0) }; KEPT];
static TAKEN_COUNT: AtomicUsize = AtomicUsize::new(0);
static EXITS: [[AtomicU64; 3]; KEPT] = [const { [const { AtomicU64::new(0) }; 3] }; KEPT];
static EXIT_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Forgets what was observed.
pub(super) fn clear() {
    TAKEN_COUNT.store(0, Relaxed);
    EXIT_COUNT.store(0, Relaxed);
}

/// The guest took a vector.
pub(super) fn note_taken(vector: u8) {
    let index = TAKEN_COUNT.fetch_add(1, Relaxed);
    if let Some(slot) = TAKEN.get(index) {
        slot.store(vector, Relaxed);
    }
}

/// The processor left the guest.
pub(super) fn note_exit(exit: Exit) {
    let index = EXIT_COUNT.fetch_add(1, Relaxed);
    if let Some([first, second, third]) = EXITS.get(index) {
        first.store(u64::from(exit.reason) | u64::from(exit.done) << 16, Relaxed);
        second.store(exit.qualification, Relaxed);
        third.store(u64::from(exit.status) | u64::from(exit.interruption) << 32, Relaxed);
    }
}

/// The vectors taken since [`clear`].
pub(super) fn taken() -> List<u8, KEPT> {
    let mut list = List::new();
    let count = TAKEN_COUNT.load(Relaxed);
    (0..count).for_each(|index| list.push(TAKEN.get(index).map_or(0, |slot| slot.load(Relaxed))));
    list
}

/// The exits since [`clear`].
pub(super) fn exits() -> List<Exit, KEPT> {
    let mut list = List::new();
    for index in 0..EXIT_COUNT.load(Relaxed) {
        let words = EXITS.get(index).map(|words| words.each_ref().map(|word| word.load(Relaxed)));
        let [first, qualification, third] = words.unwrap_or_default();
        list.push(Exit {
            reason: first as u16,
            done: first & 1 << 16 != 0,
            qualification,
            status: third as u16,
            interruption: (third >> 32) as u32,
        });
    }
    list
}
