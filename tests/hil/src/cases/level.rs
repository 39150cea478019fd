//! Level-triggered interrupts: whose EOI goes on to the I/O APICs.
//!
//! With virtual-interrupt delivery an EOI is the processor's unless its EOI-exit bit is loaded, so the driver has to have
//! it loaded before the guest can have the interrupt.

use core::sync::atomic::Ordering;

use vlapic_core::{Notify, Outcome, Trigger, Vector};

use super::stage::{Stage, patient, pause, taker, taker_argument};
use super::{Case, Failure, Setting, check, equal};
use crate::guest::{Context, Eoi};
use crate::hypervisor::{Config, Level};
use crate::vmx::Reason;

pub(super) const CASES: &[Case] = &[
    Case { name: "level-eoi", cpus: 2, applies: |_| true, run: eoi },
    Case { name: "level-edge-alternating", cpus: 2, applies: |_| true, run: alternating },
    Case { name: "level-suppressed", cpus: 2, applies: has_suppression, run: suppressed },
    Case {
        name: "level-staged",
        cpus: 2,
        applies: |at| at.level.delivers() && !at.level.is_svm(),
        run: staged,
    },
];

/// An AMD APIC, which emulated ones are on SVM, broadcasts each EOI.
fn has_suppression(setting: Setting) -> bool {
    !setting.level.is_svm()
}

const LEVEL: u8 = 0x61;
const EDGE: u8 = 0x92;
const ROUNDS: u32 = 100;

/// Word of the context: EOIs that the guest has written for the vectors with [`ended`] as their hook.
const ENDED: usize = 0;

/// A hook that comes after the EOI.
fn ended(context: &'static Context, _: u8) {
    context.word(ENDED).fetch_add(1, Ordering::Release);
}

/// A running taker whose handlers tell of each EOI.
fn stage(setting: Setting, svr: u32) -> Result<Stage, Failure> {
    let stage = Stage::new(Config::new(setting.level, 1))?;
    for vector in [LEVEL, EDGE] {
        stage.context(0).set_handling(vector, Eoi::First, Some(ended));
    }
    stage.launch(taker, taker_argument(setting.mode, svr))?;
    stage.wait_phase(0, 1)?;
    Ok(stage)
}

/// Posts, and waits for the guest's EOI.
fn post_and_end(stage: &Stage, vector: u8, trigger: Trigger) -> Result<(), Failure> {
    told(stage, vector, trigger).map(drop)
}

/// As [`post_and_end`]; how the vCPU was told.
fn told(stage: &Stage, vector: u8, trigger: Trigger) -> Result<Told, Failure> {
    let word = stage.context(0).word(ENDED);
    let before = word.load(Ordering::Acquire);
    let receipt = stage.post(0, vector, trigger);
    check(receipt.outcome == Outcome::Accepted, "a post was refused")?;
    check(patient(|| word.load(Ordering::Acquire) != before), "an interrupt was lost")?;
    equal("interrupts for one post", word.load(Ordering::Acquire), before + 1)?;
    Ok(match receipt.notify {
        Notify::Interrupt { .. } => Told::ByInterrupt,
        Notify::Kick => Told::ByKick,
        _ => Told::Otherwise,
    })
}

/// How a vCPU was told of a post.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// In guest mode, by the notification vector.
    ByInterrupt,
    /// It had to leave guest mode.
    ByKick,
    Otherwise,
}

fn eois(stage: &Stage, vector: u8) -> u32 {
    stage.machine.eois[usize::from(vector)].load(Ordering::SeqCst)
}

/// Each EOI of a level-triggered interrupt comes out once, none of an edge-triggered one.
fn eoi(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting, 0x1ff)?;
    for round in 1..=ROUNDS {
        post_and_end(&stage, LEVEL, Trigger::Level)?;
        equal("EOIs of the level-triggered vector", eois(&stage, LEVEL), round)?;
        post_and_end(&stage, EDGE, Trigger::Edge)?;
    }
    pause(100_000);
    equal("EOIs of the level-triggered vector, at last", eois(&stage, LEVEL), ROUNDS)?;
    equal("EOIs of the edge-triggered vector", eois(&stage, EDGE), 0u32)?;
    stage.go(0, 1);
    stage.finish(0)?;
    let exits = stage.machine.exits(0).map_or(0, |exits| exits.of(Reason::VirtualizedEoi));
    let expected = if setting.level.delivers() && !setting.level.is_svm() { ROUNDS } else { 0 };
    equal("virtualized-EOI exits", exits, expected)
}

/// One vector as level and as edge in turn: the last acceptance decides.
fn alternating(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting, 0x1ff)?;
    for round in 1..=ROUNDS {
        post_and_end(&stage, LEVEL, Trigger::Level)?;
        equal("EOIs after level", eois(&stage, LEVEL), round)?;
        post_and_end(&stage, LEVEL, Trigger::Edge)?;
        equal("EOIs after edge", eois(&stage, LEVEL), round)?;
    }
    stage.go(0, 1);
    stage.finish(0)
}

/// With SVR bit 12 the guest tells the I/O APIC itself, so no EOI comes out.
fn suppressed(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting, 0x11ff)?;
    for _ in 0..ROUNDS {
        post_and_end(&stage, LEVEL, Trigger::Level)?;
    }
    equal("EOIs in spite of suppression", eois(&stage, LEVEL), 0u32)?;
    stage.go(0, 1);
    stage.finish(0)
}

/// A level-triggered vector whose EOI-exit bit is not loaded makes the vCPU leave guest mode first; with the bit loaded, or
/// for edges, that is not needed.
fn staged(setting: Setting) -> Result<(), Failure> {
    let posted = setting.level == Level::Posted;
    let usual = if posted { Told::ByInterrupt } else { Told::ByKick };
    let stage = stage(setting, 0x1ff)?;
    let first = told(&stage, LEVEL, Trigger::Level)?;
    check(first == Told::ByKick, "the vCPU was not made to load the EOI-exit bit")?;
    equal("EOIs after staging", eois(&stage, LEVEL), 1u32)?;
    let second = told(&stage, LEVEL, Trigger::Level)?;
    check(second == usual, "notification with the bit loaded")?;
    equal("EOIs with the bit loaded", eois(&stage, LEVEL), 2u32)?;
    check(told(&stage, EDGE, Trigger::Edge)? == usual, "notification of an edge")?;

    // A route that is known beforehand: the bit is there when the first interrupt comes.
    let routed = Vector::new(EDGE).ok_or(Failure::Wrong("a vector"))?;
    if let Some(posting) = stage.slot(0).posting() {
        posting.set_level_route(routed, true);
    }
    stage.machine.notify(0, Notify::Kick);
    let loaded = stage.machine.guest_exits(0);
    pause(100_000);
    check(told(&stage, EDGE, Trigger::Level)? == usual, "notification of a known route")?;
    equal("EOIs of the known route", eois(&stage, EDGE), 1u32)?;
    let exits = stage.machine.guest_exits(0) - loaded;
    equal("exits of the known route", exits, 1u32)?;
    stage.go(0, 1);
    stage.finish(0)
}
