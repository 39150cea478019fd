//! VMCALL or VMMCALL: the guest talks to the host that runs it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// The instruction is VMMCALL, as on AMD.
pub(super) static VMMCALL: AtomicBool = AtomicBool::new(false);

/// Makes guests use VMMCALL: the host has found SVM. Each processor knows but one of the two instructions.
pub(crate) fn use_vmmcall() {
    VMMCALL.store(true, Ordering::Relaxed);
}

/// Asks the host for `operation`; RAX carries it, RDI and RSI its two arguments, RAX the answer.
pub(crate) fn call(operation: u64, first: u64, second: u64) -> u64 {
    let answer;
    if VMMCALL.load(Ordering::Relaxed) {
        // SAFETY: in a guest VMMCALL exits to the host, which changes RAX alone; it may look at memory that an argument
        // names.
        unsafe {
            asm!("vmmcall", inout("rax") operation => answer, in("rdi") first, in("rsi") second, options(nostack));
        }
    } else {
        // SAFETY: as above, for VMCALL.
        unsafe {
            asm!("vmcall", inout("rax") operation => answer, in("rdi") first, in("rsi") second, options(nostack));
        }
    }
    answer
}

/// The program is done.
pub(crate) fn finish(value: u64) {
    call(FINISH, value, 0);
}

/// The program has come to a point that its host waits for.
pub(crate) fn phase(number: u64) -> u64 {
    call(PHASE, number, 0)
}

/// A line for the log.
pub(crate) fn log(text: &str) {
    call(LOG, text.as_ptr().expose_provenance() as u64, text.len() as u64);
}

/// An exception that nobody expected.
pub(super) fn fault(vector: u8, error_code: u32, rip: u64) {
    call(FAULT, u64::from(vector) | u64::from(error_code) << 32, rip);
}

const FINISH: u64 = 1;
const PHASE: u64 = 2;
const LOG: u64 = 3;
const FAULT: u64 = 4;

/// The first operation that a case may give a meaning of its own.
pub(crate) const FIRST_FREE: u64 = 16;

/// What a guest asked for, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Hypercall {
    /// The program is done, and this is its result.
    Finish(u64),
    /// It has come to the point of this number.
    Phase(u64),
    /// A line for the log.
    Log(&'static str),
    /// An exception without a handler.
    Fault {
        /// Which.
        vector: u8,
        /// As pushed.
        error_code: u32,
        /// The instruction.
        rip: u64,
    },
    /// Whatever the case and its program agreed on.
    Other {
        /// From [`FIRST_FREE`].
        operation: u64,
        /// First argument.
        first: u64,
        /// Second argument.
        second: u64,
    },
}

impl Hypercall {
    /// From the registers of a guest that has executed the call, in the order of their encoding.
    pub(crate) fn decode(registers: &[u64; 16]) -> Self {
        let [operation, _, _, _, _, _, second, first, ..] = *registers;
        match operation {
            FINISH => Self::Finish(first),
            PHASE => Self::Phase(first),
            LOG => Self::Log(text(first, second)),
            FAULT => {
                Self::Fault { vector: first as u8, error_code: (first >> 32) as u32, rip: second }
            }
            _ => Self::Other { operation, first, second },
        }
    }
}

/// The text that `log` was given. A host that does not trust its guests would check the address against its memory.
fn text(address: u64, length: u64) -> &'static str {
    let start = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the guest is part of this image and passed a `&str`; memory is the same on both sides. It waits for the answer,
    // so the text lives while it is printed.
    let bytes = unsafe { core::slice::from_raw_parts(start, length as usize) };
    core::str::from_utf8(bytes).unwrap_or("(not text)")
}
