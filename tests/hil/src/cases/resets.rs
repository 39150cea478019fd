//! Posts to a vCPU that is reset by INIT and SIPI again and again.
//!
//! INIT throws away what was accepted before it, so accepted posts may be lost with their life; but none may be taken twice,
//! none may come to a life in which it was not accepted, and an APIC that is disabled refuses.

use core::sync::atomic::Ordering;

use spin::Mutex;
use vlapic_core::{Address, Delivery, Destination, Message, Outcome, Trigger};

use super::guest_apic::{IRR, ISR, is_empty};
use super::posts::vectors;
use super::stage::{GO, PHASE, START_PAGE, Stage, patient, pause};
use super::{Case, Failure, Setting, check, equal, guests};
use crate::guest::{Context, apic, cpu};
use crate::hypervisor::{Config, Level, VirtualMachine};
use crate::log;
use crate::machine::smp;

pub(super) const CASES: &[Case] = &[
    Case { name: "posts-resetting", cpus: 2, applies: |_| true, run: in_turn },
    Case { name: "posts-resetting-race", cpus: 3, applies: |_| true, run: at_once },
];

/// The vCPU that is reset: not the first, which would not wait for a SIPI.
const TARGET: usize = 1;

/// Word of the context: lives that began with something in IRR or ISR.
const STALE: usize = 0;

/// Each life looks for leftovers, enables its APIC, tells its number, and takes what comes.
extern "C" fn phoenix(context: &'static Context, argument: u64) -> u64 {
    let life = context.word(PHASE).load(Ordering::Acquire) + 1;
    if guests::enter_mode(context, guests::mode(argument)).is_err() {
        return 1;
    }
    if !is_empty(context, IRR) || !is_empty(context, ISR) {
        context.word(STALE).fetch_add(1, Ordering::Relaxed);
    }
    if apic::write(context, apic::SVR, 0x1ff).is_err() {
        return 2;
    }
    // Told with interrupts off: where each interrupt costs many exits, the posts leave no time for anything else.
    context.word(PHASE).store(life, Ordering::Release);
    cpu::interrupts_on();
    while context.word(GO).load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    0
}

/// Only the target runs: vCPU 0 would be on this CPU.
fn stage(setting: Setting) -> Result<Stage, Failure> {
    let stage = Stage::with_first_here(Config::new(setting.level, 2))?;
    stage.launch(phoenix, guests::argument(setting.mode))?;
    Ok(stage)
}

fn resets(level: Level) -> u64 {
    if level == Level::Posted { 200 } else { 40 }
}

/// What was accepted, by vector, and whether it was taken.
pub(super) struct Ledger<'s> {
    stage: &'s Stage,
    vcpu: usize,
    accepted: [u32; 256],
    posts: u32,
    lost: u32,
}

impl<'s> Ledger<'s> {
    pub(super) fn new(stage: &'s Stage, vcpu: usize) -> Self {
        Self { stage, vcpu, accepted: [0; 256], posts: 0, lost: 0 }
    }

    fn taken(&self, vector: u8) -> u32 {
        self.stage.context(self.vcpu).count(vector)
    }

    /// Posts each vector whose last post was taken. Says whether all that were posted were accepted.
    fn pass(&mut self) -> Result<bool, Failure> {
        self.post_if(false)
    }

    /// Posts each vector `always`, or if its last post was taken.
    pub(super) fn post_if(&mut self, always: bool) -> Result<bool, Failure> {
        let mut all = true;
        for vector in vectors() {
            let accepted = self.accepted[usize::from(vector)];
            let taken = self.taken(vector);
            check(taken <= accepted, "a post was taken twice")?;
            if always || taken == accepted {
                let receipt = self.stage.post(self.vcpu, vector, Trigger::Edge);
                let right = receipt.outcome == Outcome::Accepted;
                self.accepted[usize::from(vector)] += u32::from(right);
                self.posts += u32::from(right);
                all &= right;
            }
        }
        Ok(all)
    }

    /// Between two lives, when nothing is taken any more: what the life took stands, the rest is lost with it.
    pub(super) fn close(&mut self) -> Result<(), Failure> {
        for vector in vectors() {
            let taken = self.taken(vector);
            let accepted = &mut self.accepted[usize::from(vector)];
            check(taken <= *accepted, "a post was taken twice")?;
            self.lost += *accepted - taken;
            *accepted = taken;
        }
        Ok(())
    }

    /// Nothing resets it any more: each post is taken, and once.
    pub(super) fn settle(&mut self, amount: u32) -> Result<(), Failure> {
        let before = self.posts;
        while self.posts - before < amount {
            let last = self.posts;
            let mut result = Ok(true);
            let posted = patient(|| {
                result = self.pass();
                !matches!(result, Ok(true)) || self.posts != last
            });
            check(result? && posted, "a post after the last reset was refused or lost")?;
        }
        for vector in vectors() {
            let accepted = self.accepted[usize::from(vector)];
            self.stage.wait_count(self.vcpu, vector, accepted)?;
        }
        pause(100_000);
        for vector in vectors() {
            equal(
                "interrupts taken after all",
                self.taken(vector),
                self.accepted[usize::from(vector)],
            )?;
        }
        Ok(())
    }
}

/// Posts and resets by one CPU, so that it is known which life each post belongs to.
fn in_turn(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting)?;
    let slot = stage.slot(TARGET);
    let mut ledger = Ledger::new(&stage, TARGET);
    for reset in 1..=resets(setting.level) {
        stage.send_to(TARGET, Delivery::Init);
        // Until the vCPU has taken its INIT, posts find the old life.
        if reset % 2 == 0 {
            ledger.pass()?;
        }
        check(patient(|| !slot.accepts() && !slot.online()), "INIT is not taken")?;
        ledger.close()?;
        let refused = stage.post(TARGET, 0x66, Trigger::Edge).outcome == Outcome::Refused;
        check(refused, "a vCPU that waits for its SIPI accepted a post")?;
        stage.send_to(TARGET, Delivery::Startup { page: START_PAGE });
        // Posts meet the new life before, while and after it enables its APIC.
        let alive = || stage.context(TARGET).word(PHASE).load(Ordering::Acquire) >= reset;
        let mut result = Ok(true);
        let lives = patient(|| {
            result = ledger.pass();
            result.is_err() || alive()
        });
        check(result.is_ok() && lives, "a life does not begin, or with a post taken twice")?;
        for _ in 0..reset % 8 {
            ledger.pass()?;
            pause(reset * 53 % 2048);
        }
    }
    // The last reset is followed by a quiet time: those of its posts that were accepted all come.
    let posts = ledger.posts;
    ledger.settle(if setting.level == Level::Posted { 4_000 } else { 500 })?;
    let (lost, after) = (ledger.lost, ledger.posts - posts);
    equal("lives with leftovers", stage.context(TARGET).word(STALE).load(Ordering::Relaxed), 0u64)?;
    if setting.level == Level::Posted {
        log!(
            "{posts} posts among {} resets, {lost} gone with their life; {after} after",
            resets(setting.level)
        );
    }
    stage.go(TARGET, 1);
    stage.finish(TARGET)
}

/// A CPU that resets the target while another posts to it. Dropping it waits for its end.
struct Resetter;

impl Resetter {
    const CPU: usize = 2;

    fn start(machine: &'static VirtualMachine) -> Self {
        *MACHINE.lock() = Some(machine);
        smp::run_on(Self::CPU, |_| {
            let machine = *MACHINE.lock();
            machine.into_iter().for_each(reset_often);
        });
        Self
    }

    fn is_done(&self) -> bool {
        smp::is_idle(Self::CPU)
    }
}

impl Drop for Resetter {
    fn drop(&mut self) {
        smp::wait_idle(Self::CPU);
    }
}

static MACHINE: Mutex<Option<&'static VirtualMachine>> = Mutex::new(None);

fn reset_often(machine: &'static VirtualMachine) {
    let destination = Destination::Physical(Address::Narrow(TARGET as u8));
    for reset in 0..resets(machine.config.level) {
        machine.send(&Message::new(Delivery::Init, destination), None);
        pause(reset * 997 % 3000);
        machine.send(&Message::new(Delivery::Startup { page: START_PAGE }, destination), None);
        pause(reset * 1999 % 30_000);
    }
}

/// Posts by one CPU, resets by another.
fn at_once(setting: Setting) -> Result<(), Failure> {
    let stage = stage(setting)?;
    stage.start(TARGET);
    stage.wait_phase(TARGET, 1)?;
    let mut ledger = Ledger::new(&stage, TARGET);
    let resetter = Resetter::start(stage.machine);
    let mut pass = 0_u32;
    while !resetter.is_done() {
        // What a reset took away is posted again some time.
        pass += 1;
        ledger.post_if(pass.is_multiple_of(16))?;
    }
    drop(resetter);
    // The last life begins anew, with nothing under way.
    stage.send_to(TARGET, Delivery::Init);
    // A life that has not enabled its APIC yet accepts nothing either: only waiting for a SIPI tells that INIT was taken.
    let slot = stage.slot(TARGET);
    check(patient(|| !slot.accepts() && !slot.online()), "INIT is not taken")?;
    // Not before: a life that began meanwhile may have told its number since.
    let lives = stage.context(TARGET).word(PHASE).load(Ordering::Acquire);
    ledger.close()?;
    stage.send_to(TARGET, Delivery::Startup { page: START_PAGE });
    stage.wait_phase(TARGET, lives + 1)?;
    let posts = ledger.posts;
    ledger.settle(500)?;
    equal("lives with leftovers", stage.context(TARGET).word(STALE).load(Ordering::Relaxed), 0u64)?;
    if setting.level == Level::Posted {
        log!(
            "{posts} posts beside {} resets and {lives} lives, {} gone",
            resets(setting.level),
            ledger.lost
        );
    }
    stage.go(TARGET, 1);
    stage.finish(TARGET)
}
