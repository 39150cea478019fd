//! The run: rounds of operations, dealt out to several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::deviation::Deviations;
use super::generate::{Random, next, prologue};
use super::kernel::Unavailable;
use super::operation::Operation;
use super::setup::{Setup, Start};
use super::sides::{Found, Sides};
use super::state::{Answer, Events};

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations done to both sides.
    pub operations: u64,
    /// Of these, how many the guest carried out.
    pub by_guest: u64,
    /// Values compared.
    pub comparisons: u64,
    /// Known deviations and how often they were met.
    pub deviations: Deviations,
    /// Rounds that took so long that timers may have expired unseen; they were done again.
    pub repeated: u64,
    /// Everything else that differed; the run ends at the first.
    pub mismatch: Option<Mismatch>,
}

/// A difference that no row explains.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// What the VM was like.
    pub vm: String,
    /// The operations since the last reset, shrunk to those that are needed.
    pub operations: Vec<Operation>,
    /// What differed after the last of them.
    pub difference: Difference,
}

/// Something that is not the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// What the operation answered.
    Answer {
        /// Ours.
        ours: Answer,
        /// The kernel's.
        kernel: Answer,
    },
    /// A register of a vCPU.
    Register {
        /// The vCPU.
        vcpu: usize,
        /// Its page offset.
        offset: u16,
        /// Before the operation.
        before: u32,
        /// Ours.
        ours: u32,
        /// The kernel's.
        kernel: u32,
    },
    /// A lowest-priority message came to several.
    Several {
        /// To how many at our side, at least.
        ours: u32,
        /// At the kernel's.
        kernel: u32,
    },
    /// What came to a vCPU beside its page.
    Events {
        /// The vCPU.
        vcpu: usize,
        /// Ours.
        ours: Events,
        /// The kernel's.
        kernel: Events,
    },
}

/// Operations from one reset to the next.
const ROUND: u64 = 200;

/// Does `operations` operations from `seed` to VMs of every kind, in as many threads as there are
/// processors, four at most. A round is its number's and the seed's, whoever does it.
///
/// # Errors
/// [`Unavailable`] if the kernel cannot be asked.
pub fn run(operations: u64, seed: u64) -> Result<Report, Unavailable> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
    let shared = Shared {
        wanted: operations,
        seed,
        done: AtomicU64::new(0),
        rounds: AtomicU64::new(0),
        over: AtomicBool::new(false),
        report: Mutex::new(Report::default()),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| shared.work())).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(shared.report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// What the threads share.
struct Shared {
    wanted: u64,
    seed: u64,
    done: AtomicU64,
    rounds: AtomicU64,
    /// Somebody has found something.
    over: AtomicBool,
    report: Mutex<Report>,
}

impl Shared {
    /// Takes rounds until there are enough operations. A vCPU's ioctls belong to the thread that made
    /// it, so each thread has its own VMs.
    fn work(&self) -> Result<(), Unavailable> {
        let mut all = Setup::all().into_iter().map(Sides::new).collect::<Result<Vec<_>, _>>()?;
        while self.done.load(Ordering::Relaxed) < self.wanted && !self.over.load(Ordering::Relaxed)
        {
            let round = self.rounds.fetch_add(1, Ordering::Relaxed);
            let index = (round % all.len() as u64) as usize;
            let (found, mismatch) = self.round(&mut all[index], round)?;
            self.done.fetch_add(found.operations, Ordering::Relaxed);
            let mut report = self.report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            report.add(&found);
            if mismatch.is_some() {
                report.mismatch = mismatch;
            }
        }
        Ok(())
    }

    fn round(
        &self,
        sides: &mut Sides,
        round: u64,
    ) -> Result<(Found, Option<Mismatch>), Unavailable> {
        let mut random = Random::new(self.seed ^ round.wrapping_mul(0xD129_0B26_53C2_77C5));
        let start = match random.below(8) {
            _ if sides.setup.wide() => Start::X2Apic,
            0..4 => Start::XApic,
            4..6 => Start::X2Apic,
            _ => Start::Mixed,
        };
        let mut list = prologue(&mut random, &sides.setup, |vcpu| start.mode(vcpu));
        for _ in 0..ROUND {
            let way = start.mode(random.below(2) as usize);
            list.push(next(&mut random, &sides.setup, way));
        }
        let found = sides.round(start, &list)?;
        let Some((length, difference)) = found.difference else { return Ok((found, None)) };
        self.over.store(true, Ordering::Relaxed);
        let (operations, difference) = shrink(sides, start, &list[..length], difference)?;
        let vm = format!("round {round}: {:x?} {start:?}", sides.setup);
        Ok((found, Some(Mismatch { vm, operations, difference })))
    }
}

impl Report {
    fn add(&mut self, found: &Found) {
        self.operations += found.operations;
        self.by_guest += found.by_guest;
        self.comparisons += found.comparisons;
        self.repeated += found.repeated;
        self.deviations.add(&found.deviations);
    }
}

/// Leaves out operations one by one as long as the same kind of difference remains.
fn shrink(
    sides: &mut Sides,
    start: Start,
    list: &[Operation],
    difference: Difference,
) -> Result<(Vec<Operation>, Difference), Unavailable> {
    let (mut list, mut last) = (list.to_vec(), difference);
    let mut index = list.len();
    while index > 0 {
        index -= 1;
        let mut shorter = list.clone();
        shorter.remove(index);
        let found = sides.round(start, &shorter)?.difference;
        if let Some((length, found)) = found.filter(|(_, found)| same_kind(found, &difference)) {
            shorter.truncate(length);
            list = shorter;
            index = index.min(list.len());
            last = found;
        }
    }
    Ok((list, last))
}

fn same_kind(one: &Difference, other: &Difference) -> bool {
    match (one, other) {
        (Difference::Register { offset: one, .. }, Difference::Register { offset: other, .. }) => {
            one & 0xF80 == other & 0xF80
        }
        _ => core::mem::discriminant(one) == core::mem::discriminant(other),
    }
}
