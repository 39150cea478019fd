//! Priorities: what TPR, CR8 and interrupts in service hold back, and what comes when they no longer do.

use core::sync::atomic::Ordering;

use super::guest_apic::{self, IRR, ISR, LONG_ENOUGH, PPR, ensure, has, self_ipi, taken};
use super::stage::{self, Stage, alone};
use super::{Case, Failure, Setting, equal, guests};
use crate::guest::{Context, Eoi, apic, cpu};
use crate::hypervisor::{Config, Level, VirtualMachine};
use crate::vmx::Reason;

pub(super) const CASES: &[Case] = &[
    Case { name: "tpr-register", cpus: 1, applies: |_| true, run: |at| gating(at, Way::Register) },
    Case { name: "tpr-cr8", cpus: 1, applies: |_| true, run: |at| gating(at, Way::Cr8) },
    Case { name: "tpr-holds-posts", cpus: 2, applies: |_| true, run: held_posts },
    Case { name: "self-ipi-order", cpus: 1, applies: |_| true, run: |at| alone(at, order) },
    Case { name: "self-ipi-nested", cpus: 1, applies: |_| true, run: |at| alone(at, nested) },
    Case { name: "self-ipi-many", cpus: 1, applies: |_| true, run: |at| alone(at, many) },
];

/// How the guest writes its task priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Register,
    Cr8,
}

/// Vectors of rising class, each in its class at another place.
const STAIRS: [u8; 7] = [0x2f, 0x43, 0x65, 0x88, 0xa9, 0xcb, 0xe0];

fn gating(setting: Setting, way: Way) -> Result<(), Failure> {
    let machine = VirtualMachine::new(Config::new(setting.level, 1))?;
    let argument = guests::argument(setting.mode) | u64::from(way == Way::Cr8) << 1;
    machine.set_program(0, gated, argument);
    equal("line of the program", machine.run_here(0)?, 0u64)?;
    let exits = machine.exits(0).map_or(0, |exits| exits.of(Reason::TprBelowThreshold));
    match way {
        _ if setting.level.delivers() => equal("TPR-below-threshold exits", exits, 0u64),
        Way::Cr8 if setting.level.is_svm() => Ok(()),
        // One for each interrupt that a lower TPR let in; the last write is by the register, which may be emulated.
        Way::Cr8 => {
            let last = u64::from(setting.level > Level::TprShadow);
            equal("TPR-below-threshold exits", exits, 1 + STAIRS.len() as u64 + last)
        }
        Way::Register => Ok(()),
    }
}

extern "C" fn gated(context: &'static Context, argument: u64) -> u64 {
    let by_cr8 = argument & 2 != 0;
    let set = |class: u64| {
        if by_cr8 { cpu::write_cr8(class) } else { apic::write(context, apic::TPR, class << 4) }
            .is_ok()
    };
    let is =
        |class: u64| cpu::read_cr8() == class && apic::read(context, apic::TPR) == Ok(class << 4);
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    ensure!(set(6) && is(6));
    self_ipi(context, 0x51);
    ensure!(taken(context, 0x51, 0) && has(context, IRR, 0x51));
    // The same class still holds it.
    ensure!(set(5) && is(5) && taken(context, 0x51, 0) && has(context, IRR, 0x51));
    ensure!(set(4) && taken(context, 0x51, 1) && !has(context, IRR, 0x51));

    ensure!(set(15));
    STAIRS.iter().for_each(|&vector| self_ipi(context, vector));
    ensure!(taken(context, 0xe0, 0) && STAIRS.iter().all(|&vector| has(context, IRR, vector)));
    for class in (0..15).rev() {
        ensure!(set(class) && is(class));
        cpu::wait(LONG_ENOUGH, || false);
        for vector in STAIRS {
            ensure!(context.count(vector) == u32::from(u64::from(vector >> 4) > class));
        }
    }
    ensure!(context.total() == 1 + STAIRS.len() as u32);
    // A value of more than 4 bits is no priority.
    ensure!(cpu::write_cr8(16).is_err() && is(0));
    // The sub-class counts for nothing but what PPR reads.
    ensure!(apic::write(context, apic::TPR, 0x55).is_ok() && cpu::read_cr8() == 5);
    ensure!(apic::read(context, PPR) == Ok(0x55));
    self_ipi(context, 0x5f);
    ensure!(taken(context, 0x5f, 0));
    self_ipi(context, 0x60);
    ensure!(taken(context, 0x60, 1) && taken(context, 0x5f, 0));
    ensure!(apic::write(context, apic::TPR, 0).is_ok() && taken(context, 0x5f, 1));
    0
}

/// Posts from another CPU wait for TPR like any others.
fn held_posts(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::run(Config::new(setting.level, 1), holder, guests::argument(setting.mode))?;
    for round in 1..=50 {
        stage.wait_phase(0, 2 * round - 1)?;
        for vector in STAIRS {
            stage.post_accepted(0, vector)?;
        }
        stage.wait_count(0, 0xe0, round as u32)?;
        stage.go(0, 2 * round - 1);
        stage.wait_phase(0, 2 * round)?;
        stage.go(0, 2 * round);
    }
    stage.finish(0)
}

extern "C" fn holder(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    for round in 1..=50 {
        // Only the last of the stairs is above class 13.
        ensure!(cpu::write_cr8(13).is_ok());
        stage::reach(context, 2 * round - 1);
        stage::wait_go(context, 2 * round - 1);
        ensure!(taken(context, 0xcb, round as u32 - 1) && has(context, IRR, 0xcb));
        ensure!(taken(context, 0xe0, round as u32));
        ensure!(cpu::write_cr8(0).is_ok());
        for vector in STAIRS {
            ensure!(taken(context, vector, round as u32));
        }
        stage::reach(context, 2 * round);
        stage::wait_go(context, 2 * round);
    }
    0
}

/// Sent while interrupts are off, they come by priority, not by age.
extern "C" fn order(context: &'static Context, argument: u64) -> u64 {
    const SENT: [u8; 5] = [0x51, 0x92, 0x31, 0xe7, 0x93];
    const EXPECTED: [u8; 5] = [0xe7, 0x93, 0x92, 0x51, 0x31];
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    cpu::interrupts_off();
    for vector in SENT {
        self_ipi(context, vector);
        // A second one before the first was taken is the same interrupt.
        guest_apic::self_ipi_by_icr(context, vector);
    }
    ensure!(context.total() == 0 && SENT.iter().all(|&vector| has(context, IRR, vector)));
    cpu::interrupts_on();
    for (index, vector) in EXPECTED.into_iter().enumerate() {
        ensure!(taken(context, vector, 1));
        ensure!(context.traced(index as u32) == Some(vector));
    }
    ensure!(context.total() == 5);
    0
}

/// Words that the hooks of [`nested`] leave.
const OUTER: usize = 0;
const INNER: usize = 1;
const RIGHT: u64 = 0x600d;

extern "C" fn nested(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    context.set_handling(
        0x51,
        Eoi::Last,
        Some(|context, _| {
            let result = outer(context);
            cpu::interrupts_off();
            context.word(OUTER).store(result, Ordering::Relaxed);
        }),
    );
    context.set_handling(
        0x92,
        Eoi::Last,
        Some(|context, _| {
            let right = has(context, ISR, 0x51)
                && has(context, ISR, 0x92)
                && apic::read(context, PPR) == Ok(0x90);
            context.word(INNER).store(if right { RIGHT } else { 0 }, Ordering::Relaxed);
        }),
    );
    self_ipi(context, 0x51);
    ensure!(taken(context, 0x31, 1) && taken(context, 0x5f, 1) && taken(context, 0x51, 1));
    ensure!(context.word(OUTER).load(Ordering::Relaxed) == 0);
    ensure!(context.word(INNER).load(Ordering::Relaxed) == RIGHT);
    for (index, vector) in [0x51, 0x92, 0x5f, 0x31].into_iter().enumerate() {
        ensure!(context.traced(index as u32) == Some(vector));
    }
    ensure!(guest_apic::is_empty(context, ISR) && guest_apic::is_empty(context, IRR));

    // In service until software says otherwise.
    context.set_handling(0x92, Eoi::Never, None);
    self_ipi(context, 0x92);
    ensure!(taken(context, 0x92, 2));
    self_ipi(context, 0x51);
    context.set_handling(0x51, Eoi::Last, None);
    ensure!(taken(context, 0x51, 1) && has(context, IRR, 0x51));
    apic::end_of_interrupt(context);
    ensure!(taken(context, 0x51, 2));
    // Nothing is in service: an EOI is no fault and ends nothing.
    apic::end_of_interrupt(context);
    self_ipi(context, 0x51);
    ensure!(taken(context, 0x51, 3) && guest_apic::is_empty(context, ISR));
    0
}

/// In the handler of 51: a higher class nests; its own class and lower ones wait for its EOI.
fn outer(context: &Context) -> u64 {
    cpu::interrupts_on();
    self_ipi(context, 0x92);
    ensure!(taken(context, 0x92, 1) && !has(context, ISR, 0x92));
    self_ipi(context, 0x31);
    self_ipi(context, 0x5f);
    ensure!(taken(context, 0x5f, 0) && taken(context, 0x31, 0));
    ensure!(apic::read(context, PPR) == Ok(0x50) && has(context, ISR, 0x51));
    0
}

/// Every legal vector that is no exception of the guest's, by both registers.
extern "C" fn many(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    let mut total = 0;
    for vector in (16..=255).filter(|vector| !matches!(vector, 17 | 21 | 29 | 30)) {
        self_ipi(context, vector);
        total += 1;
        ensure!(cpu::wait_long(guest_apic::SOON, || context.count(vector) == 1));
        guest_apic::self_ipi_by_icr(context, vector);
        total += 1;
        ensure!(cpu::wait_long(guest_apic::SOON, || context.count(vector) == 2));
        ensure!(context.total() == total);
    }
    0
}
