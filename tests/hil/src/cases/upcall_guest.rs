//! The guest side of the upcall story: the vCPU that controls, and the one that is started.

use core::sync::atomic::Ordering;

use super::Mode;
use super::guests::{enable_apic, enter_mode, mode};
use crate::guest::{self, Context, Fault, apic, cpu, hypercall};

/// Linux's vector for upcalls.
pub(super) const UPCALL: u8 = 0xf3;

/// Hypercalls: (vCPU, vector).
pub(super) const REGISTER: u64 = hypercall::FIRST_FREE;
/// An event for a vCPU: (vCPU, -).
pub(super) const EVENT: u64 = hypercall::FIRST_FREE + 1;
/// The caller's pending byte goes back to 0.
pub(super) const CLEAR: u64 = hypercall::FIRST_FREE + 2;

/// What the vCPUs do, beside the mode in their arguments.
pub(super) mod act {
    /// The vector is registered and the event comes before INIT and SIPI, as Linux brings up its vCPUs.
    pub(in super::super) const BEFORE_INIT: u64 = 0;
    /// Both come while the started vCPU runs with its APIC disabled.
    pub(in super::super) const WHILE_DISABLED: u64 = 2;
    /// The started vCPU has its APIC enabled, takes an upcall, and disables it; then comes another event.
    pub(in super::super) const DISABLED_AGAIN: u64 = 4;
}

/// Words of the started vCPU's context.
pub(super) mod word {
    /// Bits of IRR and ISR that were set while the APIC was disabled, and upcalls that were taken then.
    pub(in super::super) const STALE: usize = 0;
    /// Upcalls that came.
    pub(in super::super) const SEEN: usize = 1;
    /// Where its APIC page is plain memory, or 0.
    pub(in super::super) const SILENT_PAGE: usize = 2;
    /// It runs, its APIC disabled.
    pub(super) const READY: usize = 3;
    /// The other vCPU has done what it does meanwhile.
    pub(super) const GO: usize = 4;
}

/// Rounds that a vCPU waits for another or for an interrupt.
const PATIENCE: u64 = 3_000_000;

const ICR: u16 = 0x300;
const ICR_HIGH: u16 = 0x310;
const INIT: u64 = 0x4500;
const STARTUP: u64 = 0x4608;

/// The vCPU that registers for the other, makes an event pending for it, and starts it.
pub(super) extern "C" fn controls(context: &'static Context, argument: u64) -> u64 {
    let mode = mode(argument);
    let send = |command: u64| match mode {
        Mode::X2Apic => apic::write(context, ICR, 1 << 32 | command),
        Mode::XApic => apic::write(context, ICR_HIGH, 1 << 24)
            .and_then(|()| apic::write(context, ICR, command)),
    };
    let happens = || {
        hypercall::call(REGISTER, 1, u64::from(UPCALL));
        hypercall::call(EVENT, 1, 0);
    };
    let done = enable_apic(context, mode).and_then(|()| {
        if argument & act::WHILE_DISABLED == 0 {
            happens();
        }
        send(INIT)?;
        send(STARTUP)
    });
    let started = guest::context(1);
    if argument & act::WHILE_DISABLED != 0 {
        if !cpu::wait_long(PATIENCE, || started.word(word::READY).load(Ordering::Acquire) != 0) {
            return 2;
        }
        happens();
        started.word(word::GO).store(1, Ordering::Release);
    }
    u64::from(done.is_err())
}

/// The vCPU that is started.
pub(super) extern "C" fn started(context: &'static Context, argument: u64) -> u64 {
    u64::from(story(context, argument).is_err())
}

fn story(context: &'static Context, argument: u64) -> Result<(), Fault> {
    enter_mode(context, mode(argument))?;
    cpu::interrupts_on();
    if argument & act::DISABLED_AGAIN != 0 {
        enabled_then_not(context)?;
    }
    if argument & act::WHILE_DISABLED != 0 {
        // Also an entry with interrupts on, after which nothing but the driver bounds this vCPU's turn.
        hypercall::phase(1);
        context.word(word::READY).store(1, Ordering::Release);
        cpu::wait_long(PATIENCE, || context.word(word::GO).load(Ordering::Acquire) != 0);
    }
    let early = u64::from(context.count(UPCALL));
    context.word(word::STALE).store(stale_bits(context)? | early, Ordering::Relaxed);
    write_svr(context, 0x1ff)?;
    cpu::wait(PATIENCE, || context.count(UPCALL) != 0);
    // A second write that leaves it enabled is no new event.
    write_svr(context, 0x1ef)?;
    cpu::wait(100_000, || false);
    context.word(word::SEEN).store(u64::from(context.count(UPCALL)), Ordering::Relaxed);
    Ok(())
}

/// Enables the APIC by an ordinary write, takes the upcall that is due, disables the APIC, and gets another event.
fn enabled_then_not(context: &'static Context) -> Result<(), Fault> {
    apic::write(context, apic::SVR, 0x1ff)?;
    cpu::wait(PATIENCE, || context.count(UPCALL) != 0);
    context.clear_count(UPCALL);
    cpu::interrupts_off();
    write_svr(context, 0xff)?;
    hypercall::call(EVENT, 1, 0);
    Ok(())
}

/// As Linux does before it enables an APIC: whatever is left in IRR and ISR.
fn stale_bits(context: &'static Context) -> Result<u64, Fault> {
    let mut stale = 0;
    for offset in (0x100..0x180).chain(0x200..0x280).step_by(16) {
        stale |= apic::read(context, offset)?;
    }
    cpu::interrupts_on();
    Ok(stale)
}

/// By the way that the host has chosen.
fn write_svr(context: &'static Context, value: u32) -> Result<(), Fault> {
    match context.word(word::SILENT_PAGE).load(Ordering::Relaxed) {
        0 => apic::write(context, apic::SVR, u64::from(value)),
        page => {
            apic::write_memory(page, apic::SVR, value);
            Ok(())
        }
    }
}

/// The handler's part: the pending byte goes back to 0 before it looks for events.
pub(super) fn clear_pending(_: &'static Context, _: u8) {
    hypercall::call(CLEAR, 0, 0);
}
