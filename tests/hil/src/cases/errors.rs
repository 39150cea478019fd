//! Errors: what ESR shows, and when its interrupt comes.

use vlapic_core::{Outcome, Trigger};

use super::guest_apic::{
    ESR, LVT_ERROR, LVT_TIMER, SELF_IPI, ensure, self_ipi, self_ipi_by_icr, taken,
};
use super::stage::Stage;
use super::{Case, Failure, Setting, guests};
use crate::guest::{Apic, Context, apic, hypercall};
use crate::hypervisor::{Config, VirtualMachine};

pub(super) const CASES: &[Case] =
    &[Case { name: "error-status", cpus: 1, applies: |_| true, run: errors }];

const ERROR: u8 = 0xfe;
const MASKED: u64 = 1 << 16;

const SEND_ILLEGAL: u64 = 1 << 5;
const RECEIVE_ILLEGAL: u64 = 1 << 6;
const ILLEGAL_REGISTER: u64 = 1 << 7;

/// Hypercall: a device sends me this vector. The answer is 1 if it was illegal.
const SEND_ME: u64 = hypercall::FIRST_FREE;

fn on_call(machine: &VirtualMachine, vcpu: usize, _: u64, vector: u64, _: u64) -> u64 {
    let receipt = machine.slot(vcpu).request(vector as u8, Trigger::Edge);
    machine.carry_out(vcpu, receipt);
    u64::from(receipt.outcome == Outcome::IllegalVector)
}

fn errors(setting: Setting) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, 1);
    config.on_call = on_call;
    Stage::with_first_here(config)?.run_first(program, guests::argument(setting.mode))
}

/// What ESR shows after it was made to show what happened.
fn status(context: &Context) -> u64 {
    match apic::write(context, ESR, 0) {
        Ok(()) => apic::read(context, ESR).unwrap_or(u64::MAX),
        Err(_) => u64::MAX,
    }
}

extern "C" fn program(context: &'static Context, argument: u64) -> u64 {
    ensure!(guests::enable_apic(context, guests::mode(argument)).is_ok());
    ensure!(status(context) == 0);
    // Sent by itself: the interrupt comes at once, the bits when ESR is written.
    ensure!(apic::write(context, LVT_ERROR, u64::from(ERROR)).is_ok());
    self_ipi_by_icr(context, 5);
    ensure!(taken(context, ERROR, 1) && apic::read(context, ESR) == Ok(0));
    ensure!(status(context) == SEND_ILLEGAL && status(context) == 0);
    self_ipi(context, 15);
    ensure!(taken(context, ERROR, 2) && status(context) == SEND_ILLEGAL);
    // Sent by others.
    ensure!(hypercall::call(SEND_ME, 15, 0) == 1 && taken(context, ERROR, 3));
    // The same error again, not shown yet, is no new one; another is.
    ensure!(hypercall::call(SEND_ME, 0, 0) == 1 && taken(context, ERROR, 3));
    self_ipi(context, 0);
    ensure!(taken(context, ERROR, 4));
    ensure!(status(context) == SEND_ILLEGAL | RECEIVE_ILLEGAL && status(context) == 0);
    // 16 is the first legal one.
    ensure!(hypercall::call(SEND_ME, 16, 0) == 0 && taken(context, 16, 1) && status(context) == 0);

    match context.apic() {
        Apic::XApic { base } => {
            // There is no self-IPI register in memory, nor anything at 0.
            apic::write_memory(base, SELF_IPI, 0x51);
            ensure!(taken(context, ERROR, 5) && taken(context, 0x51, 0));
            ensure!(status(context) == ILLEGAL_REGISTER);
            apic::read_memory(base, 0);
            ensure!(taken(context, ERROR, 6) && status(context) == ILLEGAL_REGISTER);
        }
        Apic::X2Apic => {
            ensure!(apic::write(context, ESR, 1).is_err());
            // As many errors as in the other mode.
            self_ipi(context, 1);
            ensure!(taken(context, ERROR, 5) && status(context) == SEND_ILLEGAL);
            self_ipi_by_icr(context, 1);
            ensure!(taken(context, ERROR, 6) && status(context) == SEND_ILLEGAL);
        }
    }

    // Masked: no interrupt, but the bits.
    ensure!(apic::write(context, LVT_ERROR, MASKED | u64::from(ERROR)).is_ok());
    self_ipi(context, 3);
    ensure!(taken(context, ERROR, 6) && status(context) == SEND_ILLEGAL);
    // The error's own vector is illegal: that is a second error, and the end of it.
    ensure!(apic::write(context, LVT_ERROR, 4).is_ok());
    self_ipi(context, 3);
    ensure!(status(context) == SEND_ILLEGAL | RECEIVE_ILLEGAL && status(context) == 0);
    // A local interrupt with an illegal vector has arrived illegally. Here: TSC-deadline mode, a time that has passed.
    ensure!(apic::write(context, LVT_ERROR, u64::from(ERROR)).is_ok());
    ensure!(apic::write(context, LVT_TIMER, 1 << 18 | 9).is_ok());
    ensure!(crate::guest::cpu::write_msr(0x6e0, 1).is_ok());
    ensure!(taken(context, ERROR, 7) && status(context) == RECEIVE_ILLEGAL);
    0
}
