//! Short sequences: each begins in the same state, so that one that finds something is found again alone.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vlapic_core::{ApicBase, Mode};

use super::deviation::Counts;
use super::difference::Difference;
use super::operation::{DFR, LDR, Operation};
use super::ours::{Ours, Remote};
use super::pair::Pair;
use super::physical::Physical;
use super::random::Random;
use super::subject::Subject;
use crate::machine::apic;
use crate::machine::smp::{self, MAX_CPUS};
use crate::{log, println};

/// What a run in one mode found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) operations: u64,
    pub(super) comparisons: u64,
    pub(super) mismatches: u64,
    pub(super) counts: Counts,
}

const LENGTH: usize = 60;
/// Sequences after which a line says that the run goes on.
const PROGRESS: u64 = 1000;
/// Kinds of mismatch that are told in full.
const TOLD: usize = 10;
const X2APIC: u64 = 1 << 10;

/// `operations` in `mode`; `None` where the machine has no such mode.
pub(super) fn run(mode: Mode, operations: u64, seed: u64) -> Option<Found> {
    let mut physical = Physical::new();
    let reached = match (physical.mode(), mode) {
        (Mode::XApic, Mode::X2Apic) => {
            Subject::find(&physical).profile.x2apic()
                && physical.set_base(physical.base() | X2APIC)
                && physical.mode() == mode
        }
        (now, wanted) => now == wanted,
    };
    if !reached {
        physical.release();
        return None;
    }
    let mut subject = Subject::find(&physical);
    let ours = Ours::new(subject.profile)?;
    if subject.others {
        physical = with_others(physical, ours);
        // What an APIC hears of another mode's messages is not laid down.
        subject.others = others_in(mode);
    }
    let mut pair = Pair::new(subject, physical, ours);
    let mut found = Found { operations: 0, comparisons: 0, mismatches: 0, counts: Counts::new() };
    let mut number = 0;
    let mut told: [Option<Difference>; TOLD] = [None; TOLD];
    while found.operations < operations {
        let sequence = sequence(&pair.subject, seed, number);
        let length = LENGTH.min((operations - found.operations) as usize);
        if let Err((step, difference)) = play(&mut pair, &sequence[..length]) {
            found.mismatches += 1;
            // One of each kind.
            let free = told
                .iter_mut()
                .find(|one| one.is_none_or(|known: Difference| known.same_kind(&difference)));
            if let Some(free @ None) = free {
                *free = Some(difference);
                let needed = &sequence[..=step.min(length - 1)];
                tell(&mut pair, seed, found.operations, needed, difference);
            }
        }
        found.operations += length as u64;
        if number.is_multiple_of(PROGRESS) {
            log!("oracle native {mode:?}: {} operations", found.operations);
        }
        number += 1;
    }
    // As others expect it.
    let _ = pair.begin();
    found.comparisons = pair.comparisons;
    found.counts = pair.counts;
    pair.physical.release();
    apic::enable();
    Some(found)
}

/// Sequence `number` of a run.
fn sequence(subject: &Subject, seed: u64, number: u64) -> [Operation; LENGTH] {
    let mut random = Random::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    random.bits();
    core::array::from_fn(|_| Operation::next(&mut random, subject))
}

/// The first step after which the two differ, and how.
fn play(pair: &mut Pair, sequence: &[Operation]) -> Result<(), (usize, Difference)> {
    pair.begin().map_err(|difference| (0, difference))?;
    for (index, operation) in sequence.iter().enumerate() {
        pair.step(*operation).map_err(|difference| (index, difference))?;
    }
    Ok(())
}

/// Leaves out what is not needed, and prints the rest.
fn tell(pair: &mut Pair, seed: u64, step: u64, sequence: &[Operation], first: Difference) {
    let counts = (pair.comparisons, pair.counts);
    let mut needed = [Operation::Take; LENGTH];
    let mut count = sequence.len();
    needed[..count].copy_from_slice(sequence);
    let mut difference = first;
    let mut index = count;
    while index > 0 {
        index -= 1;
        let mut shorter = needed;
        shorter.copy_within(index + 1..count, index);
        if let Err((at, other)) = play(pair, &shorter[..count - 1])
            && other.same_kind(&first)
        {
            needed = shorter;
            count = (at + 1).min(count - 1);
            index = index.min(count);
            difference = other;
        }
    }
    println!(
        "HIL-MISMATCH oracle=native seed={seed} step={step} note={difference} after {}",
        List(&needed[..count])
    );
    (pair.comparisons, pair.counts) = counts;
}

struct List<'a>(&'a [Operation]);

impl core::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|operation| write!(f, "{operation} "))
    }
}

static BASES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static LDRS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static DFRS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Whether all other CPUs are in `mode`.
fn others_in(mode: Mode) -> bool {
    let own = smp::this_cpu();
    (0..smp::cpu_count())
        .filter(|&cpu| cpu != own)
        .all(|cpu| ApicBase::from_bits(BASES[cpu].load(Ordering::Relaxed)).mode() == mode)
}

static WANT_X2APIC: AtomicBool = AtomicBool::new(false);

/// Puts other CPUs into our mode, gives them logical destinations of their own, and tells ours how they are set up.
fn with_others(physical: Physical, ours: &mut Ours) -> Physical {
    WANT_X2APIC.store(physical.mode() == Mode::X2Apic, Ordering::Relaxed);
    physical.release();
    let own = smp::this_cpu();
    for cpu in (0..smp::cpu_count()).filter(|&cpu| cpu != own) {
        smp::run_on(cpu, |cpu| {
            if WANT_X2APIC.load(Ordering::Relaxed) && apic::mode() == apic::Mode::XApic {
                apic::enter_x2apic();
            }
            if apic::mode() == apic::Mode::XApic {
                apic::write_offset(LDR, 0x0100_0000 << (cpu & 7));
                apic::write_offset(DFR, 0xffff_ffff);
                DFRS[cpu].store(apic::read_offset(DFR), Ordering::Relaxed);
            }
            LDRS[cpu].store(apic::read_offset(LDR), Ordering::Relaxed);
            BASES[cpu]
                .store(crate::machine::msr::read(vlapic_core::IA32_APIC_BASE), Ordering::Relaxed);
        });
        // `wait_idle` sees all that the work wrote.
        smp::wait_idle(cpu);
        ours.set_remote(
            cpu,
            Remote {
                base: BASES[cpu].load(Ordering::Relaxed),
                ldr: LDRS[cpu].load(Ordering::Relaxed),
                dfr: DFRS[cpu].load(Ordering::Relaxed),
            },
        );
    }
    Physical::new()
}
