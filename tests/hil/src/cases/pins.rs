//! NMI, and the pins LINT0 and LINT1.

use core::sync::atomic::Ordering;

use vlapic_core::{Delivery, Pin};

use super::guest_apic::{LVT_LINT0, LVT_LINT1, ensure};
use super::stage::{self, Stage, pause};
use super::{Case, Failure, Setting, equal, guests};
use crate::guest::{Context, Eoi, apic, cpu, hypercall};
use crate::hypervisor::{Config, VirtualMachine};

pub(super) const CASES: &[Case] = &[
    Case { name: "nmi", cpus: 2, applies: |_| true, run: nmi },
    Case { name: "lint-edge", cpus: 2, applies: |_| true, run: edge },
    Case { name: "lint-level", cpus: 2, applies: |_| true, run: level },
];

const NMI: u8 = 2;
const ROUNDS: u32 = 20;

/// NMIs come whatever IF and SVR say.
fn nmi(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::run(Config::new(setting.level, 1), target, guests::argument(setting.mode))?;
    for phase in 1..=3 {
        stage.wait_phase(0, phase)?;
        for count in 1..=ROUNDS {
            super::check(stage.send_to(0, Delivery::Nmi), "an NMI was refused")?;
            stage.wait_count(0, NMI, (phase as u32 - 1) * ROUNDS + count)?;
        }
        pause(100_000);
        equal("NMIs", stage.context(0).count(NMI), phase as u32 * ROUNDS)?;
        stage.go(0, phase);
    }
    stage.finish(0)
}

extern "C" fn target(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    stage::reach(context, 1);
    stage::wait_go(context, 1);
    cpu::interrupts_off();
    stage::reach(context, 2);
    stage::wait_go(context, 2);
    ensure!(apic::write(context, apic::SVR, 0xff).is_ok());
    stage::reach(context, 3);
    stage::wait_go(context, 3);
    0
}

const LINT0: u8 = 0x61;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVER_NMI: u64 = 4 << 8;

fn set(stage: &Stage, pin: Pin, asserted: bool) {
    let notify = stage.slot(0).set_lint(pin, asserted);
    stage.machine.notify(0, notify);
}

/// One interrupt for each rise of a pin.
fn edge(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::run(Config::new(setting.level, 1), wired, guests::argument(setting.mode))?;
    stage.wait_phase(0, 1)?;
    for count in 1..=ROUNDS {
        for (pin, vector) in [(Pin::Lint0, LINT0), (Pin::Lint1, NMI)] {
            set(&stage, pin, true);
            stage.wait_count(0, vector, count)?;
            // It stays asserted, and is asserted once more: neither is a rise.
            set(&stage, pin, true);
            pause(10_000);
            set(&stage, pin, false);
            pause(10_000);
            equal("interrupts of one rise", stage.context(0).count(vector), count)?;
        }
    }
    // Masked pins rise in vain.
    stage.go(0, 1);
    stage.wait_phase(0, 2)?;
    for pin in [Pin::Lint0, Pin::Lint1] {
        set(&stage, pin, true);
        pause(50_000);
        set(&stage, pin, false);
    }
    stage.go(0, 2);
    stage.wait_phase(0, 3)?;
    pause(50_000);
    equal("interrupts in all", stage.context(0).total(), 2 * ROUNDS)?;
    stage.go(0, 3);
    stage.finish(0)
}

extern "C" fn wired(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for (phase, mask) in [(1, 0), (2, MASKED), (3, 0)] {
        ensure!(apic::write(context, LVT_LINT0, mask | u64::from(LINT0)).is_ok());
        ensure!(apic::write(context, LVT_LINT1, mask | DELIVER_NMI).is_ok());
        stage::reach(context, phase);
        stage::wait_go(context, phase);
    }
    0
}

/// Hypercall: the device is served, it lowers its pin.
const SERVED: u64 = hypercall::FIRST_FREE;

fn on_call(machine: &VirtualMachine, vcpu: usize, _: u64, _: u64, _: u64) -> u64 {
    machine.notify(vcpu, machine.slot(vcpu).set_lint(Pin::Lint0, false));
    0
}

/// Word of the context: handlers that found remote IRR set.
const REMOTE: usize = 0;
/// Word of the context: how often the device was served.
const SERVICES: usize = 1;
/// Interrupts until the device is served.
const SERVICE: u32 = 3;

/// An interrupt and its EOI again and again while the pin is asserted.
fn level(setting: Setting) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 1);
    config.on_call = on_call;
    let stage = Stage::new(config)?;
    stage.context(0).set_handling(LINT0, Eoi::Last, Some(serve));
    stage.launch(shared, guests::argument(setting.mode))?;
    stage.wait_phase(0, 1)?;
    for round in 1..=ROUNDS {
        set(&stage, Pin::Lint0, true);
        stage.wait_count(0, LINT0, round * SERVICE)?;
        // The handler counts first and lowers the pin then; raising it before that would be no rise.
        let served = || stage.context(0).word(SERVICES).load(Ordering::Acquire) >= u64::from(round);
        super::check(stage::patient(served), "the device is not served")?;
        pause(20_000);
        equal("interrupts after service", stage.context(0).count(LINT0), round * SERVICE)?;
    }
    // Asserted while it is masked, it comes when it is unmasked.
    stage.go(0, 1);
    stage.wait_phase(0, 2)?;
    set(&stage, Pin::Lint0, true);
    pause(50_000);
    equal("interrupts of a masked pin", stage.context(0).count(LINT0), ROUNDS * SERVICE)?;
    stage.go(0, 2);
    stage.wait_phase(0, 3)?;
    stage.wait_count(0, LINT0, (ROUNDS + 1) * SERVICE)?;
    let remote = stage.context(0).word(REMOTE).load(Ordering::Relaxed);
    equal("handlers that found remote IRR set", remote, (ROUNDS + 1) * SERVICE)?;
    stage.go(0, 3);
    stage.finish(0)
}

fn serve(context: &'static Context, vector: u8) {
    if apic::read(context, LVT_LINT0).is_ok_and(|entry| entry & REMOTE_IRR != 0) {
        context.word(REMOTE).fetch_add(1, Ordering::Relaxed);
    }
    // An exit with the pin still asserted: that is no second interrupt.
    hypercall::phase(0);
    if context.count(vector).is_multiple_of(SERVICE) {
        hypercall::call(SERVED, 0, 0);
        context.word(SERVICES).fetch_add(1, Ordering::Release);
    }
}

extern "C" fn shared(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for (phase, mask) in [(1, 0), (2, MASKED), (3, 0)] {
        ensure!(apic::write(context, LVT_LINT0, mask | LEVEL | u64::from(LINT0)).is_ok());
        stage::reach(context, phase);
        stage::wait_go(context, phase);
    }
    ensure!(apic::read(context, LVT_LINT0) == Ok(LEVEL | u64::from(LINT0)));
    0
}
