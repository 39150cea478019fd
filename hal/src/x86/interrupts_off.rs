//! Interrupts off for a few instructions.

use ::x86::bits64::rflags::{self, RFlags};
use ::x86::irq;

/// Keeps maskable interrupts off on this CPU until dropped, then restores RFLAGS.IF.
pub(super) struct InterruptsOff {
    were_on: bool,
}

impl InterruptsOff {
    /// # Safety
    /// CPL 0 until the value is dropped, on one CPU.
    pub(super) unsafe fn new() -> Self {
        let were_on = rflags::read().contains(RFlags::FLAGS_IF);
        // SAFETY: CLI is allowed at CPL 0 (SDM vol. 2, CLI), for which our caller vouched. Turning
        // interrupts off breaks nobody's memory.
        unsafe { irq::disable() };
        Self { were_on }
    }
}

impl Drop for InterruptsOff {
    fn drop(&mut self) {
        if self.were_on {
            // SAFETY: STI is allowed at CPL 0 (SDM vol. 2, STI), for which the caller of `new`
            // vouched. Interrupts were on before, so the host is ready for them.
            unsafe { irq::enable() };
        }
    }
}
