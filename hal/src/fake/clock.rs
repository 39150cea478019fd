use core::sync::atomic::{AtomicU64, Ordering};

use crate::Clock;

/// A clock that stands still until it is told to go on.
///
/// ```
/// use vlapic_hal::Clock;
/// use vlapic_hal::fake::ManualClock;
///
/// let clock = ManualClock::new(100);
/// clock.advance(20);
/// assert_eq!(clock.now(), 120);
/// ```
#[derive(Debug, Default)]
pub struct ManualClock {
    ticks: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `ticks`.
    pub const fn new(ticks: u64) -> Self {
        Self { ticks: AtomicU64::new(ticks) }
    }

    /// Moves the clock on by `ticks`. It wraps as the counter of a processor would.
    pub fn advance(&self, ticks: u64) {
        // Relaxed: the time orders nothing else.
        self.ticks.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Sets the clock to `ticks`.
    pub fn set(&self, ticks: u64) {
        self.ticks.store(ticks, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }
}
