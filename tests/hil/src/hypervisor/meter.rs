//! What the drivers' own work costs: time-stamp ticks from call to return.
//!
//! Bochs counts one tick an instruction as long as the machine has one CPU, so there these are instructions; on a real
//! machine they are ticks of time.

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

/// Ticks since [`clear`]. One vCPU at a time is looked at, so nothing has to be ordered.
static WORK: AtomicU64 = AtomicU64::new(0);

/// What measuring nothing costs.
static NOTHING: AtomicU64 = AtomicU64::new(0);

/// Does `work` and adds what it took.
#[inline]
pub(crate) fn measured<R>(work: impl FnOnce() -> R) -> R {
    let before = TscClock.now();
    let result = work();
    let took = TscClock.now() - before;
    WORK.fetch_add(took.saturating_sub(NOTHING.load(Ordering::Relaxed)), Ordering::Relaxed);
    result
}

/// Finds out what measuring itself costs.
pub(crate) fn calibrate() {
    NOTHING.store(0, Ordering::Relaxed);
    let cheapest = (0..64).map(|_| {
        clear();
        measured(|| ());
        total()
    });
    NOTHING.store(cheapest.min().unwrap_or(0), Ordering::Relaxed);
    clear();
}

/// Begins anew.
pub(crate) fn clear() {
    WORK.store(0, Ordering::Relaxed);
}

/// Ticks since [`clear`].
pub(crate) fn total() -> u64 {
    WORK.load(Ordering::Relaxed)
}
