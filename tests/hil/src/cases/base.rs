//! IA32_APIC_BASE: its transitions, what survives them, and transitions while interrupts arrive.

use vlapic_core::{Outcome, Trigger};

use super::guest_apic::{IRR, ensure, has, is_empty, self_ipi, taken};
use super::resets::Ledger;
use super::stage::{self, Stage, patient, pause};
use super::{Case, Failure, Mode, Setting, check, guests};
use crate::guest::apic::{APIC_BASE_MSR, DEFAULT_BASE};
use crate::guest::{Apic, Context, apic, cpu, hypercall};
use crate::hypervisor::{Config, VirtualMachine};

pub(super) const CASES: &[Case] = &[
    Case { name: "base-transitions", cpus: 1, applies: from_xapic, run: transitions },
    Case { name: "base-under-load", cpus: 2, applies: from_xapic, run: under_load },
];

/// All three modes are part of each run.
fn from_xapic(setting: Setting) -> bool {
    setting.mode == Mode::XApic
}

const BSP: u64 = 1 << 8;
const EXTD: u64 = 1 << 10;
const EN: u64 = 1 << 11;
const XAPIC: u64 = DEFAULT_BASE | BSP | EN;
const X2APIC: u64 = XAPIC | EXTD;
const DISABLED: u64 = DEFAULT_BASE | BSP;
const SVR_MSR: u32 = 0x80f;

/// Hypercall: a device sends me this vector. The answer is 1 if it was accepted.
const SEND_ME: u64 = hypercall::FIRST_FREE;

fn on_call(machine: &VirtualMachine, vcpu: usize, _: u64, vector: u64, _: u64) -> u64 {
    let receipt = machine.slot(vcpu).request(vector as u8, Trigger::Edge);
    machine.carry_out(vcpu, receipt);
    u64::from(receipt.outcome == Outcome::Accepted)
}

fn transitions(setting: Setting) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 1);
    config.on_call = on_call;
    Stage::with_first_here(config)?.run_first(walk, 0)
}

fn set(base: u64) -> bool {
    cpu::write_msr(APIC_BASE_MSR, base).is_ok() && is(base)
}

/// A write is a #GP, and changes nothing.
fn faults(base: u64, value: u64) -> bool {
    cpu::write_msr(APIC_BASE_MSR, value).is_err() && is(base)
}

fn is(base: u64) -> bool {
    cpu::read_msr(APIC_BASE_MSR) == Ok(base)
}

/// Bits that are reserved whatever the mode, and the pair EN = 0, EXTD = 1.
fn all_reserved_fault(base: u64) -> bool {
    [0, 1, 7, 9, 52, 63].iter().all(|bit| faults(base, base ^ 1 << bit))
        && faults(base, DISABLED | EXTD)
}

extern "C" fn walk(context: &'static Context, _: u64) -> u64 {
    let memory = Apic::XApic { base: DEFAULT_BASE };
    ensure!(is(XAPIC));
    for _ in 0..3 {
        ensure!(guests::enable_apic(context, Mode::XApic).is_ok());
        ensure!(all_reserved_fault(XAPIC));
        ensure!(cpu::read_msr(SVR_MSR).is_err() && cpu::write_msr(SVR_MSR, 0x1ff).is_err());
        ensure!(hypercall::call(SEND_ME, 0x41, 0) == 1 && taken(context, 0x41, 1));

        // What is in the registers goes along to x2APIC mode.
        cpu::interrupts_off();
        ensure!(apic::write(context, apic::TPR, 0x20).is_ok());
        self_ipi(context, 0x51);
        ensure!(set(X2APIC));
        context.set_apic(Apic::X2Apic);
        ensure!(apic::read(context, apic::SVR) == Ok(0x1ff) && cpu::read_cr8() == 2);
        ensure!(apic::read(context, 0x20) == Ok(0) && apic::read(context, 0xd0) == Ok(1));
        ensure!(has(context, IRR, 0x51));
        cpu::interrupts_on();
        ensure!(taken(context, 0x51, 1) && apic::write(context, apic::TPR, 0).is_ok());
        ensure!(all_reserved_fault(X2APIC) && faults(X2APIC, XAPIC));

        // Disabled, there are no registers, and nothing is accepted or kept.
        cpu::interrupts_off();
        ensure!(hypercall::call(SEND_ME, 0x61, 0) == 1 && set(DISABLED));
        ensure!(all_reserved_fault(DISABLED) && faults(DISABLED, X2APIC));
        ensure!(cpu::read_msr(SVR_MSR).is_err() && hypercall::call(SEND_ME, 0x61, 0) == 0);
        cpu::interrupts_on();
        ensure!(taken(context, 0x61, 0));

        // Back again, it is as after reset.
        ensure!(set(XAPIC));
        context.set_apic(memory);
        ensure!(apic::read(context, apic::SVR) == Ok(0xff) && is_empty(context, IRR));
        ensure!(hypercall::call(SEND_ME, 0x61, 0) == 0);
        context.clear_count(0x41);
        context.clear_count(0x51);
    }
    0
}

/// Times that the guest goes through all modes.
const ROUNDS: u64 = 30;

extern "C" fn restless(context: &'static Context, _: u64) -> u64 {
    for round in 1..=ROUNDS {
        ensure!(guests::enable_apic(context, Mode::XApic).is_ok());
        cpu::wait(20 * round, || false);
        cpu::interrupts_off();
        ensure!(set(X2APIC));
        context.set_apic(Apic::X2Apic);
        cpu::interrupts_on();
        cpu::wait(20 * round, || false);
        cpu::interrupts_off();
        ensure!(set(DISABLED) && set(XAPIC));
        context.set_apic(Apic::XApic { base: DEFAULT_BASE });
        ensure!(is_empty(context, IRR));
    }
    ensure!(guests::enable_apic(context, Mode::XApic).is_ok());
    stage::reach(context, 1);
    stage::wait_go(context, 1);
    0
}

/// Posts from another CPU go on while the guest changes modes.
fn under_load(setting: Setting) -> Result<(), Failure> {
    let stage = Stage::run(Config::new(setting.level, 1), restless, 0)?;
    let mut ledger = Ledger::new(&stage, 0);
    let mut pass = 0_u64;
    // An EOI that is emulated takes its time.
    let breath = if setting.level.delivers() { 10_000 } else { 300_000 };
    let mut result = Ok(true);
    let done = patient(|| {
        pass += 1;
        // What went with a disabled APIC is posted again some time. The pauses leave the guest time for its own.
        result = ledger.post_if(pass.is_multiple_of(8));
        pause(breath);
        result.is_err() || stage.has_ended(0) || stage.has_come_to(0, 1)
    });
    result?;
    check(done, "the guest does not get through its modes")?;
    stage.wait_phase(0, 1)?;
    // From here on nothing is thrown away; what is still to come of the load comes first.
    pause(2_000_000);
    ledger.close()?;
    ledger.settle(500)?;
    stage.go(0, 1);
    stage.finish(0)
}
