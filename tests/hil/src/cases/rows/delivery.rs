//! Which interrupt is taken when, and what it leaves behind: with virtual-interrupt delivery by the processor (SDM Vol. 3C
//! 29.2), else by injection.

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::Trigger;

use super::access::Fate;
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Setting, check, equal, record};
use crate::guest::hypercall;
use crate::guest::{Context, Eoi, apic, cpu};
use crate::vmx::Reason;
use crate::vmx::interrupt::Event;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-rvi-at-entry", cpus: 1, applies: |_| true, run: |at| probe::run(at, rvi) },
    Case { name: "rows-svi-blocks", cpus: 1, applies: |_| true, run: |at| probe::run(at, svi) },
    Case { name: "rows-window-first", cpus: 1, applies: |_| true, run: window_first },
    Case { name: "rows-injection-first", cpus: 1, applies: delivers, run: injection_first },
];

fn delivers(setting: Setting) -> bool {
    setting.level.delivers()
}

const ISR: u16 = 0x100;
const IRR: u16 = 0x200;
const VECTOR: u8 = 0x51;

/// What the handler of [`VECTOR`] finds.
static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

fn note_status(_: &'static Context, _: u8) {
    // The hypercall's own exit stores it.
    hypercall::phase(0);
    IN_HANDLER.store(record::last_status(), Ordering::Relaxed);
}

/// A request that is there at the entry: held while IF is 0, taken through the guest's IDT when IF is 1, and gone without a
/// trace after the EOI. With virtual-interrupt delivery none of it exits.
fn rvi(probe: &Probe) -> Result<(), Failure> {
    probe.context.set_handling(VECTOR, Eoi::Last, Some(note_status));
    let vector = u64::from(VECTOR);
    let status = |value: u64| if probe.delivers() { value } else { 0 };
    probe.post(VECTOR, Trigger::Edge);
    check(probe.has(IRR, VECTOR), "the request is not in IRR")?;
    equal("RVI and SVI while IF is 0", probe.interrupt_status(), status(vector))?;
    equal("taken while IF is 0", probe.context.total(), 0u64)?;
    for round in 1..3 {
        probe.at(round as u64);
        record::clear();
        if round == 1 {
            cpu::interrupts_on();
        } else {
            // IF is 1 at the entry: there is no instruction between the two.
            probe.post(VECTOR, Trigger::Edge);
        }
        if probe.delivers() {
            equal("exits", record::total(), 0u64)?;
        }
        equal("taken", probe.context.count(VECTOR), round as u64)?;
        equal(
            "RVI and SVI in the handler",
            IN_HANDLER.load(Ordering::Relaxed),
            status(vector << 8),
        )?;
        check(!probe.has(IRR, VECTOR), "the request is still in IRR")?;
        check(!probe.has(ISR, VECTOR), "the vector is still in ISR")?;
        equal("RVI and SVI in the end", probe.interrupt_status(), 0u64)?;
    }
    Ok(())
}

/// What is in service holds back its own class and those below it, until its EOI; a higher class comes through.
fn svi(probe: &Probe) -> Result<(), Failure> {
    let [below, first, same, above] = [VECTOR, 0x61, 0x68, 0x71];
    probe.context.set_handling(first, Eoi::Never, None);
    cpu::interrupts_on();
    record::clear();
    for vector in [first, below, same, above] {
        let sent = apic_self_ipi(probe, vector);
        if probe.delivers() {
            equal("exits of a self-IPI", sent, 0u64)?;
        }
    }
    probe.taken(&[first, above])?;
    check(probe.has(ISR, first), "the first is not in service")?;
    check(probe.has(IRR, below) && probe.has(IRR, same), "those held back are not in IRR")?;
    let held = u64::from(first) << 8 | u64::from(same);
    equal("RVI and SVI", probe.interrupt_status(), if probe.delivers() { held } else { 0 })?;
    let end = probe.write(apic::EOI, 0);
    if probe.delivers() {
        end.must(Fate::Silent)?;
    }
    probe.taken(&[first, above, same, below])?;
    equal("in service in the end", probe.word(ISR + 0x20) | probe.word(ISR + 0x30), 0u64)
}

/// The exits of a self-IPI, and of what is taken because of it.
fn apic_self_ipi(probe: &Probe, vector: u8) -> u64 {
    probe.self_ipi(vector).exits
}

/// Hypercall: exit as soon as the guest can take an interrupt.
const WANT_WINDOW: u64 = probe::FREE;
/// Hypercall: the entry after it injects [`INJECTED`], while [`VECTOR`] is requested.
const INJECT: u64 = probe::FREE + 1;
const INJECTED: u8 = 0x61;

/// Interrupt-window exiting goes before the interrupt, which stays in IRR. Without virtual-interrupt delivery that is how
/// the driver delivers what came while IF was 0.
fn window_first(setting: Setting) -> Result<(), Failure> {
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        let hypercall = probe::called(exit, current);
        let delivers = machine.config.level.delivers();
        let _ = match exit.reason {
            // With virtual-interrupt delivery the control is the hypervisor's own.
            Reason::InterruptWindow if delivers => current.set_interrupt_window(false),
            _ if hypercall == Some(WANT_WINDOW) => current.set_interrupt_window(true),
            _ => Ok(()),
        };
    };
    probe::run_with(config, setting, window, |_| Ok(()))
}

fn window(probe: &Probe) -> Result<(), Failure> {
    probe.self_ipi(VECTOR);
    if probe.delivers() {
        hypercall::call(WANT_WINDOW, 0, 0);
    }
    record::clear();
    cpu::interrupts_on();
    cpu::interrupts_off();
    let Some(exit) = record::get(0) else { return Err(Failure::Wrong("no exit")) };
    equal("reason", exit.reason.number(), Reason::InterruptWindow.number())?;
    equal(
        "RVI at the exit",
        exit.status & 0xff,
        if probe.delivers() { u64::from(VECTOR) } else { 0 },
    )?;
    equal("SVI at the exit", exit.status >> 8, 0u64)?;
    // What follows is the EOI.
    equal("exits", record::total(), if probe.delivers() { 1u64 } else { 2 })?;
    probe.taken(&[VECTOR])
}

/// An event that the entry injects goes first, and is not the APIC's: it is never in ISR, and needs no EOI.
fn injection_first(setting: Setting) -> Result<(), Failure> {
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        if probe::called(exit, current) == Some(INJECT) {
            let _ = machine.slots[vcpu].request(VECTOR, Trigger::Edge);
            let _ = current.inject(Event::ExternalInterrupt(INJECTED));
        }
    };
    probe::run_with(config, setting, injection, |_| Ok(()))
}

fn injection(probe: &Probe) -> Result<(), Failure> {
    probe.context.set_handling(INJECTED, Eoi::Never, Some(note_status));
    cpu::interrupts_on();
    record::clear();
    hypercall::call(INJECT, 0, 0);
    equal("exits", record::total(), 0u64)?;
    probe.taken(&[INJECTED, VECTOR])?;
    let waiting = u64::from(VECTOR);
    equal("RVI and SVI after the injection", IN_HANDLER.load(Ordering::Relaxed), waiting)?;
    check(!probe.has(ISR, INJECTED), "the injected vector is in ISR")?;
    equal("RVI and SVI in the end", probe.interrupt_status(), 0u64)
}
