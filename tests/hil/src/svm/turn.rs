//! The host's timer bounds a turn of the guest: SVM has none of its own for that.

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use crate::machine::apic;

/// The timer's physical vector. Nobody handles it: it is there to end the turn.
pub(crate) const VECTOR: u8 = 0xe5;

/// Ticks of the timer in 2^16 ticks of the TSC; 0 before [`calibrate`].
static RATE: AtomicU64 = AtomicU64::new(0);

/// Finds out how fast the timer runs, once.
pub(super) fn calibrate() {
    const CURRENT_COUNT: u16 = 0x390;
    const TICKS: u64 = 1_000_000;
    if RATE.load(Ordering::Relaxed) != 0 {
        return;
    }
    apic::start_timer(VECTOR, u32::MAX);
    let start = TscClock.now();
    let mut passed = 0;
    while passed < TICKS {
        core::hint::spin_loop();
        passed = TscClock.now().wrapping_sub(start);
    }
    let counted = u64::from(u32::MAX - apic::read_offset(CURRENT_COUNT));
    apic::stop_timer();
    RATE.store(((counted << 16) / passed).max(1), Ordering::Relaxed);
}

/// Lets the timer interrupt this CPU in `ticks` of the TSC, or somewhat later.
pub(super) fn start(ticks: u64) {
    let count = (u128::from(ticks) * u128::from(RATE.load(Ordering::Relaxed))) >> 16;
    apic::start_timer(VECTOR, u32::try_from(count + 1).unwrap_or(u32::MAX));
}

/// Stops the timer. An interrupt that it has raised already is still taken.
pub(super) fn end() {
    apic::stop_timer();
}
