//! Instructions that a guest program needs, with faults as values where a fault may be the answer.

use core::arch::asm;
use core::sync::atomic::Ordering;

use super::context::{Context, Fault};
use crate::machine::identity::{self, Machine};

/// RDMSR.
pub(crate) fn read_msr(register: u32) -> Result<u64, Fault> {
    let (low, high): (u32, u32);
    // SAFETY: guest code at CPL 0; GS:8 is the context's fixup, which makes a #GP go on at 2. RDMSR touches no memory.
    unsafe {
        asm!(
            "lea {resume}, [rip + 2f]",
            "mov gs:[8], {resume}",
            "rdmsr",
            "2:",
            resume = out(reg) _,
            in("ecx") register,
            inout("eax") 0_u32 => low,
            inout("edx") 0_u32 => high,
            options(nostack),
        );
    }
    settle().map(|()| u64::from(high) << 32 | u64::from(low))
}

/// WRMSR, of a register that changes nothing about memory: the guest's APIC's.
pub(crate) fn write_msr(register: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: as in `read_msr`; the registers of a local APIC change no state that compiled code relies on.
    unsafe {
        asm!(
            "lea {resume}, [rip + 2f]",
            "mov gs:[8], {resume}",
            "wrmsr",
            "2:",
            resume = out(reg) _,
            in("ecx") register,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack),
        );
    }
    settle()
}

/// MOV from CR8: the task priority, 0 to 15.
pub(crate) fn read_cr8() -> u64 {
    let value;
    // SAFETY: guest code at CPL 0; no side effects.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// MOV to CR8; values above 15 are a #GP.
pub(crate) fn write_cr8(value: u64) -> Result<(), Fault> {
    // SAFETY: guest code at CPL 0; as in `read_msr` a #GP goes on at 2. The task priority only delays interrupts.
    unsafe {
        asm!(
            "lea {resume}, [rip + 2f]",
            "mov gs:[8], {resume}",
            "mov cr8, {value}",
            "2:",
            resume = out(reg) _,
            value = in(reg) value,
            options(nostack),
        );
    }
    settle()
}

/// Forgets the fixup, and says whether it was used.
pub(crate) fn settle() -> Result<(), Fault> {
    let context = Context::current();
    context.fixup.store(0, Ordering::Relaxed);
    context.take_fault().map_or(Ok(()), Err)
}

/// STI: interrupts are taken after the next instruction.
pub(crate) fn interrupts_on() {
    // SAFETY: the guest's IDT has a handler for each vector. The NOP ends the window in which STI still holds them off.
    unsafe { asm!("sti", "nop", options(nostack)) };
}

/// CLI.
pub(crate) fn interrupts_off() {
    // SAFETY: only delays interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

/// HLT with RFLAGS.IF as it is.
pub(crate) fn halt() {
    // SAFETY: waits; no side effects.
    unsafe { asm!("hlt", options(nostack)) };
}

/// STI and HLT, between which no interrupt is taken: one that pends ends the halt.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: as for `interrupts_on` and `halt`.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// RFLAGS.IF.
pub(crate) fn interrupts_are_on() -> bool {
    x86::bits64::rflags::read().contains(x86::bits64::rflags::RFlags::FLAGS_IF)
}

/// Spins until `done`, at most `rounds` times. Says whether it was done.
pub(crate) fn wait(rounds: u64, mut done: impl FnMut() -> bool) -> bool {
    (0..rounds).any(|_| {
        core::hint::spin_loop();
        done()
    })
}

/// The same for what must come: where the machine's CPUs are threads of a busy host, so many rounds may pass before another
/// CPU has had a turn at all, so there it lasts some seconds as well.
pub(crate) fn wait_long(rounds: u64, mut done: impl FnMut() -> bool) -> bool {
    /// Some seconds in ticks of any TSC.
    const SECONDS: u64 = 20_000_000_000;
    if wait(rounds, &mut done) {
        return true;
    }
    let (start, mut over) = (rdtsc(), identity::machine() == Machine::Bochs);
    while !over {
        over = rdtsc().wrapping_sub(start) > SECONDS;
        if wait(1, &mut done) {
            return true;
        }
    }
    false
}

fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no side effects, and guests here may use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
