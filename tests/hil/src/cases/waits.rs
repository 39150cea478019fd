//! Interrupts that come while the guest halts without an exit, or has interrupts off: what the processor itself does with
//! them, and the two defects of Bochs there.

use vlapic_core::Notify;
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::guest_apic::{IRR, ensure, has, self_ipi, taken};
use super::stage::{self, Stage, patient, pause};
use super::{Case, Failure, Setting, check, equal, guests};
use crate::guest::{Context, apic, cpu, hypercall};
use crate::hypervisor::{Config, Level};
use crate::machine::identity::{self, Machine};
use crate::println;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "halted-inside",
        cpus: 2,
        applies: |at| at.level.delivers() && !at.level.is_svm(),
        run: halted,
    },
    Case {
        name: "posts-masked",
        cpus: 2,
        applies: |at| matches!(at.level, Level::Posted | Level::Avic),
        run: masked,
    },
];

/// A defect that only Bochs is known for: elsewhere it is a failure.
fn defect(name: &str, note: &'static str) -> Result<(), Failure> {
    check(identity::machine() == Machine::Bochs, note)?;
    println!("HIL-BUG name={name} note={note}");
    Ok(())
}

const ROUNDS: u32 = 20;
const VECTOR: u8 = 0x51;

/// HLT without an exit is ended by an interrupt that is pending already, and by one that is posted.
fn halted(setting: Setting) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 1);
    config.at_exit = |_, _, _, current| {
        let _ = current.set_hlt_exiting(false);
    };
    let stage = Stage::run(config, sleeper, guests::argument(setting.mode))?;
    let context = stage.context(0);
    let mut overslept = false;
    let there = patient(|| {
        let before = context.count(VECTOR);
        pause(300_000);
        if context.count(VECTOR) == before && !stage.has_come_to(0, 1) {
            overslept = true;
            // Any physical interrupt wakes it.
            stage.machine.notify(0, Notify::Kick);
        }
        stage.has_come_to(0, 1)
    });
    check(there, "the guest sleeps for ever")?;
    stage.wait_phase(0, 1)?;
    if overslept {
        defect("D1", "a pending virtual interrupt does not wake a halted guest")?;
    }
    stage.go(0, 1);
    for round in 1..=ROUNDS {
        pause(3_000);
        stage.post_accepted(0, VECTOR)?;
        stage.wait_count(0, VECTOR, ROUNDS + round)?;
    }
    stage.finish(0)
}

extern "C" fn sleeper(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    // The first exit has come: from here on HLT does not.
    hypercall::phase(0);
    for round in 1..=ROUNDS {
        cpu::interrupts_off();
        self_ipi(context, VECTOR);
        cpu::wait_for_interrupt();
        ensure!(context.count(VECTOR) == round);
    }
    stage::reach(context, 1);
    stage::wait_go(context, 1);
    while context.count(VECTOR) < 2 * ROUNDS {
        cpu::interrupts_off();
        if context.count(VECTOR) < 2 * ROUNDS {
            cpu::wait_for_interrupt();
        }
    }
    0
}

/// Posts to a guest with interrupts off go into its page with no exit, and are taken when it turns them on.
fn masked(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::run(Config::new(setting.level, 1), deaf, guests::argument(setting.mode))?;
    let context = stage.context(0);
    let mut late = false;
    for round in 1..=ROUNDS {
        let phase = u64::from(2 * round - 1);
        stage.wait_phase(0, phase)?;
        let exits = stage.machine.guest_exits(0);
        stage.post_accepted(0, VECTOR)?;
        let landed = || stage.slot(0).page().irr().highest().is_some();
        let start = TscClock.now();
        check(patient(landed), "a post does not come to a guest with interrupts off")?;
        late |= TscClock.now() - start > 500_000;
        equal("interrupts taken with interrupts off", context.count(VECTOR), round - 1)?;
        equal("exits of a post", stage.machine.guest_exits(0) - exits, 0u64)?;
        stage.go(0, phase);
        stage.wait_phase(0, phase + 1)?;
        stage.go(0, phase + 1);
    }
    if late {
        defect("D2", "no posted-interrupt processing while the guest has IF=0")?;
    }
    stage.finish(0)
}

extern "C" fn deaf(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for round in 1..=ROUNDS {
        let phase = u64::from(2 * round - 1);
        cpu::interrupts_off();
        // In half of the rounds it has been entered with interrupts off.
        if round.is_multiple_of(2) {
            hypercall::phase(0);
        }
        stage::reach(context, phase);
        stage::wait_go(context, phase);
        ensure!(has(context, IRR, VECTOR) && context.count(VECTOR) == round - 1);
        ensure!(apic::read(context, apic::TPR) == Ok(0));
        cpu::interrupts_on();
        ensure!(taken(context, VECTOR, round));
        stage::reach(context, phase + 1);
        stage::wait_go(context, phase + 1);
    }
    0
}
