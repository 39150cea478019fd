//! Model-specific registers, with #GP as a value.

use core::arch::global_asm;

use super::interrupts::Frame;

/// Reads an MSR that exists.
pub(crate) fn read(msr: u32) -> u64 {
    // SAFETY: RDMSR has no effect on memory; a register that does not exist raises #GP, which ends the run with a report.
    unsafe { x86::msr::rdmsr(msr) }
}

/// Writes an MSR that exists and takes this value.
///
/// # Safety
/// The change must be one that running Rust code survives.
pub(crate) unsafe fn write(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { x86::msr::wrmsr(msr, value) }
}

/// Reads an MSR; `None` where RDMSR raises #GP.
pub(crate) fn try_read(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: RDMSR has no effect on memory, a fault is recovered from, and `value` can be written.
    let fault = unsafe { hil_try_rdmsr(msr, &raw mut value) };
    (fault == 0).then_some(value)
}

/// Writes an MSR; `false` where WRMSR raises #GP.
///
/// # Safety
/// The change, if it is made, must be one that running Rust code survives.
pub(crate) unsafe fn try_write(msr: u32, value: u64) -> bool {
    // SAFETY: the caller's promise; a fault is recovered from.
    unsafe { hil_try_wrmsr(msr, value) == 0 }
}

/// If `frame` is a #GP raised by one of the accesses that may fail, makes it fail; otherwise `false`.
pub(super) fn recover(frame: &mut Frame) -> bool {
    let faulting = [&raw const hil_rdmsr_instruction, &raw const hil_wrmsr_instruction];
    let known = faulting.iter().any(|instruction| instruction.addr() as u64 == frame.rip);
    if known {
        frame.rip = (&raw const hil_msr_failed).addr() as u64;
    }
    known
}

unsafe extern "C" {
    fn hil_try_rdmsr(msr: u32, value: *mut u64) -> u32;
    fn hil_try_wrmsr(msr: u32, value: u64) -> u32;
    static hil_rdmsr_instruction: u8;
    static hil_wrmsr_instruction: u8;
    static hil_msr_failed: u8;
}

global_asm!(
    "hil_try_rdmsr:",
    "mov ecx, edi",
    "hil_rdmsr_instruction: rdmsr",
    "mov [rsi], eax",
    "mov [rsi + 4], edx",
    "xor eax, eax",
    "ret",
    "hil_try_wrmsr:",
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "hil_wrmsr_instruction: wrmsr",
    "xor eax, eax",
    "ret",
    "hil_msr_failed:",
    "mov eax, 1",
    "ret",
);
