//! RDTSC.

use crate::Clock;

/// The time-stamp counter of the CPU that makes the call.
///
/// ```
/// use vlapic_hal::Clock;
/// use vlapic_hal::x86::TscClock;
///
/// let before = TscClock.now();
/// assert!(TscClock.now() >= before);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TscClock;

impl Clock for TscClock {
    #[inline]
    fn now(&self) -> u64 {
        // RDTSC may run ahead of earlier instructions; after LFENCE it does not (SDM vol. 2, RDTSC).
        ::x86::fence::lfence();
        // SAFETY: every x86-64 processor has RDTSC, and it writes EDX:EAX only. With CR4.TSD set it
        // raises #GP(0) above CPL 0 (SDM vol. 2, RDTSC), which ends the program and corrupts nothing.
        unsafe { ::x86::time::rdtsc() }
    }
}
