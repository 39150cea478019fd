//! Posts from another CPU: whatever the vCPU is doing, each is taken once.
//!
//! A vector is posted again only after the guest's handler has counted its last post, so each post is one interrupt: a
//! count that stays behind is a lost post, one that runs ahead a doubled one.

use core::sync::atomic::Ordering;

use vlapic_core::{Outcome, Trigger};

use super::stage::{GO, PHASE, Stage, patient, pause};
use super::{Case, Failure, Setting, check, equal, guests};
use crate::guest::{Context, cpu, hypercall};
use crate::hypervisor::{Config, Level, VirtualMachine};
use crate::log;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "posts-running",
        cpus: 2,
        applies: |_| true,
        run: |at| posts(at, Target::Running),
    },
    Case {
        name: "posts-preempted",
        cpus: 2,
        applies: |_| true,
        run: |at| posts(at, Target::Preempted),
    },
    Case {
        name: "posts-migrating",
        cpus: 3,
        applies: |_| true,
        run: |at| posts(at, Target::Migrating),
    },
    Case { name: "posts-halted", cpus: 2, applies: |_| true, run: |at| posts(at, Target::Halted) },
];

/// What the vCPU does while posts arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Executes guest code.
    Running,
    /// Is out of guest mode for a while again and again, half of the times with its scheduler having said so.
    Preempted,
    /// Halts after each interrupt.
    Halted,
    /// Runs, now on one CPU, now on another.
    Migrating,
}

/// Spread over all words of PIR and over most priority classes; exceptions of the guest are left out.
pub(super) fn vectors() -> impl Iterator<Item = u8> {
    (0x20..=0xff).step_by(7)
}

/// Posts in one run of a case. All runs at the level with posted interrupts together make more than 100,000.
fn amount(setting: Setting, target: Target) -> u64 {
    match (setting.level, target) {
        (Level::Posted, Target::Running) => 22_000,
        (Level::Posted, _) => 16_000,
        _ => 1_000,
    }
}

/// Word of the context. 1: the vCPU is out of guest mode until its poster sets this to 0.
const AWAY: usize = 0;
/// Word of the context: how often it was.
const TIMES_AWAY: usize = 1;

/// Hypercall: let me be out of guest mode for a while.
const YIELD: u64 = hypercall::FIRST_FREE;

extern "C" fn taker(context: &'static Context, argument: u64) -> u64 {
    if guests::enable_apic(context, guests::mode(argument)).is_err() {
        return 1;
    }
    context.word(PHASE).store(1, Ordering::Release);
    let kind = argument >> 1;
    let stopped = || context.word(GO).load(Ordering::Acquire) != 0;
    while !stopped() {
        if kind == Target::Preempted as u64 {
            hypercall::call(YIELD, 0, 0);
        } else if kind == Target::Halted as u64 {
            cpu::interrupts_off();
            if !stopped() {
                cpu::wait_for_interrupt();
            }
        }
    }
    0
}

/// The vCPU's CPU comes here for [`YIELD`].
fn on_call(machine: &VirtualMachine, vcpu: usize, _: u64, _: u64, _: u64) -> u64 {
    let context = machine.context(vcpu);
    if context.word(TIMES_AWAY).fetch_add(1, Ordering::Relaxed) & 1 == 0
        && let Some(posting) = machine.slot(vcpu).posting()
    {
        posting.preempt();
    }
    context.word(AWAY).store(1, Ordering::Release);
    while context.word(AWAY).load(Ordering::Acquire) != 0
        && context.word(GO).load(Ordering::Acquire) == 0
        && !machine.is_stopped(vcpu)
    {
        core::hint::spin_loop();
    }
    0
}

fn posts(setting: Setting, target: Target) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 1);
    config.on_call = on_call;
    let argument = guests::argument(setting.mode) | (target as u64) << 1;
    let stage = Stage::run(config, taker, argument)?;
    stage.wait_phase(0, 1)?;
    let exits = stage.machine.guest_exits(0);
    let sender = send(&stage, amount(setting, target), target)?;
    let exits = stage.machine.guest_exits(0) - exits;
    let context = stage.context(0);
    equal("interrupts taken", context.total(), sender.total)?;
    // Everything is counted: what comes now was doubled.
    for _ in 0..20 {
        context.word(AWAY).store(0, Ordering::Release);
        pause(10_000);
    }
    equal("interrupts taken after all", context.total(), sender.total)?;
    match target {
        Target::Running if setting.level == Level::Posted => {
            equal("exits of posts to a running vCPU", exits, 0u64)?;
        }
        Target::Preempted if setting.level.delivers() => {
            check(sender.while_away > sender.total / 4, "hardly any post found it away")?;
        }
        Target::Halted => {
            check(exits > u64::from(sender.total) / 2, "it hardly ever halted")?;
        }
        Target::Migrating => check(sender.moves > 8, "it hardly ever moved")?,
        _ => {}
    }
    stage.go(0, 1);
    if target == Target::Halted {
        // The last one only ends the halt.
        stage.post_accepted(0, 0x20)?;
    }
    stage.finish(0)?;
    if setting.level == Level::Posted {
        let Sent { total, while_away, moves, .. } = sender;
        log!("{target:?}: {total} posts, {while_away} while away, {moves} moves, {exits} exits");
    }
    Ok(())
}

/// Posts `amount` times to vCPU 0, each vector again as soon as its last post was taken.
fn send(stage: &Stage, amount: u64, target: Target) -> Result<Sent, Failure> {
    let context = stage.context(0);
    let mut sent = Sent { each: [0; 256], total: 0, while_away: 0, moves: 0 };
    let mut pass = 0_u64;
    while u64::from(sent.total) < amount {
        let before = sent.total;
        let mut result = Ok(());
        let posted = patient(|| {
            pass += 1;
            let away = context.word(AWAY).load(Ordering::Acquire) != 0;
            // Most posts are to find it away, and some about to come or go.
            if target != Target::Preempted || away || pass.is_multiple_of(64) {
                result = sent.pass(stage, target, away);
            }
            if away {
                context.word(AWAY).store(0, Ordering::Release);
            }
            result.is_err() || sent.total != before
        });
        result?;
        check(posted, "a post was lost")?;
        if target == Target::Migrating && sent.total / 100 != before / 100 {
            check(stage.migrate(), "it ended while it was moved")?;
            sent.moves += 1;
        }
        if target == Target::Halted {
            // So that posts meet it at every point on its way into the halt.
            pause(u64::from(sent.total) * 37 % 1024);
        }
    }
    for vector in vectors() {
        let posted = sent.each[usize::from(vector)];
        patient(|| {
            context.word(AWAY).store(0, Ordering::Release);
            context.count(vector) >= posted
        });
        equal("interrupts taken of one vector", context.count(vector), posted)?;
    }
    Ok(sent)
}

/// What was sent.
struct Sent {
    each: [u32; 256],
    total: u32,
    while_away: u32,
    moves: u32,
}

impl Sent {
    /// Posts vectors whose last post was taken: to a vCPU that runs all of them, to one that is away some, but only one to
    /// a vCPU that halts, when there is none to be taken, or that is about to be preempted.
    fn pass(&mut self, stage: &Stage, target: Target, away: bool) -> Result<(), Failure> {
        let context = stage.context(0);
        let taken = context.total();
        if target == Target::Halted && taken != self.total {
            return check(taken < self.total, "a post was taken twice");
        }
        let (first, amount) = match target {
            Target::Halted => (self.total as usize % vectors().count(), 1),
            Target::Preempted if !away => (self.total as usize % vectors().count(), 1),
            Target::Preempted => {
                (self.total as usize % 8, 1 + self.total as usize % vectors().count())
            }
            Target::Running | Target::Migrating => (0, usize::MAX),
        };
        for vector in vectors().skip(first).take(amount) {
            let posted = &mut self.each[usize::from(vector)];
            let taken = context.count(vector);
            check(taken <= *posted, "a post was taken twice")?;
            if taken == *posted {
                let receipt = stage.post(0, vector, Trigger::Edge);
                check(receipt.outcome == Outcome::Accepted, "a post was refused")?;
                *posted += 1;
                self.total += 1;
                self.while_away += u32::from(away);
            }
        }
        Ok(())
    }
}
