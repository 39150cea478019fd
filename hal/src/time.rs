//! Time.

/// The host's time-stamp counter.
pub trait Clock {
    /// Ticks of the time-stamp counter, host's value: no guest offset or scaling applied.
    ///
    /// Two calls on one CPU never go backwards. Across CPUs the answer is as good as the machine's
    /// synchronisation of the counters.
    fn now(&self) -> u64;
}

impl<T: Clock + ?Sized> Clock for &T {
    fn now(&self) -> u64 {
        (**self).now()
    }
}

impl<T: Clock + ?Sized> Clock for &mut T {
    fn now(&self) -> u64 {
        (**self).now()
    }
}
