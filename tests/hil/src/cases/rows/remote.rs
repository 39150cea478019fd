//! A second CPU that does what the guest asks for while the guest runs.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use vlapic_core::Trigger;

use super::probe::{self, Body, Probe};
use crate::cases::{Failure, Setting, record};
use crate::guest::cpu;
use crate::hypervisor::{Config, VirtualMachine};
use crate::machine::{apic, smp};
use crate::vmx::vcpu::Current;
use crate::vmx::{Exit, Reason};

/// What the other CPU does at each step that the guest asks for.
pub(super) type Job = fn(&'static VirtualMachine, u64);

/// [`probe::run`] with `job` on CPU 1.
pub(super) fn run(setting: Setting, body: Body, job: Job) -> Result<(), Failure> {
    run_with(config(setting), setting, body, job)
}

/// The VM of [`run`]: as for a probe, and every exit is counted.
pub(super) fn config(setting: Setting) -> Config {
    Config { at_exit: watch, ..probe::config(setting) }
}

/// [`run`] in another VM.
pub(super) fn run_with(
    config: Config,
    setting: Setting,
    body: Body,
    job: Job,
) -> Result<(), Failure> {
    let result = probe::run_with(config, setting, body, |machine| {
        for count in [&ASKED, &TURNS, &INTERRUPTS] {
            count.store(0, Ordering::Relaxed);
        }
        STOP.store(false, Ordering::Relaxed);
        *JOB.lock() = Some((machine, job));
        smp::run_on(1, |_| helper());
        Ok(())
    });
    STOP.store(true, Ordering::Release);
    smp::wait_idle(1);
    result
}

static JOB: Mutex<Option<(&'static VirtualMachine, Job)>> = Mutex::new(None);
static STOP: AtomicBool = AtomicBool::new(false);
/// The last step that the guest has asked for.
static ASKED: AtomicU64 = AtomicU64::new(0);

fn helper() {
    let Some((machine, job)) = JOB.lock().take() else { return };
    let mut done = 0;
    while !STOP.load(Ordering::Acquire) {
        let asked = ASKED.load(Ordering::Acquire);
        if asked != done {
            job(machine, asked & 0xff);
            done = asked;
        }
        core::hint::spin_loop();
    }
}

/// For guests: the other CPU shall do `step`, a number below 256.
pub(super) fn ask(step: u64) {
    let next = (ASKED.load(Ordering::Relaxed) >> 8) + 1;
    ASKED.store(next << 8 | step, Ordering::Release);
}

/// Waits for something that the other CPU brings about, for guest and job alike.
pub(super) fn wait(done: impl FnMut() -> bool) -> bool {
    cpu::wait(3_000_000, done)
}

/// For guests: lets the other CPU's interrupts arrive.
pub(super) fn linger() {
    cpu::wait(20_000, || false);
}

/// For jobs: posts and notifies, as a device's driver would.
pub(super) fn post(machine: &'static VirtualMachine, vector: u8) {
    let receipt = machine.slots[0].request(vector, Trigger::Edge);
    machine.carry_out(0, receipt);
}

/// For jobs: the physical interrupt `vector` to the CPU that runs the vCPU.
pub(super) fn interrupt(vector: u8) {
    apic::send(smp::apic_id(0), vector);
}

/// Exits for physical interrupts, and for the preemption timer.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

pub(super) fn watch(machine: &VirtualMachine, vcpu: usize, exit: &Exit, current: &mut Current<'_>) {
    record::observe(machine, vcpu, exit, current);
    match exit.reason {
        Reason::ExternalInterrupt => {
            LAST.store(exit.interruption.word.into(), Ordering::Relaxed);
            INTERRUPTS.fetch_add(1, Ordering::Release);
        }
        Reason::PreemptionTimer => {
            TURNS.fetch_add(1, Ordering::Release);
        }
        _ => {}
    }
}

/// How many exits there were for physical interrupts.
pub(super) fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Acquire)
}

/// The interruption information of the last of them.
pub(super) fn last_interruption() -> u64 {
    LAST.load(Ordering::Relaxed)
}

/// How often the hypervisor has ended the guest's turn by its timer. Where that changes meanwhile, the guest was not in
/// guest mode all the time.
pub(super) fn turns() -> u64 {
    TURNS.load(Ordering::Acquire)
}

/// Does `attempt` until it was not disturbed by a turn's end, and gives its result.
pub(super) fn in_one_turn(
    probe: &Probe,
    mut attempt: impl FnMut(&Probe) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for _ in 0..8 {
        let before = turns();
        let result = attempt(probe);
        if turns() == before {
            return result;
        }
    }
    Err(Failure::Wrong("no turn was long enough"))
}
