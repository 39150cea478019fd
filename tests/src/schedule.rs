//! A pseudo-random schedule.

/// Numbers for a schedule; the same seed gives the same ones.
#[derive(Debug, Clone)]
pub struct Schedule {
    state: u64,
}

impl Schedule {
    /// The schedule of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Schedule { state: seed }
    }

    /// The next number, below `bound`.
    pub fn pick(&mut self, bound: usize) -> usize {
        assert_ne!(bound, 0, "nothing to pick from");
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }

    /// One element of a slice.
    pub fn choose<'s, T>(&mut self, from: &'s [T]) -> &'s T {
        &from[self.pick(from.len())]
    }
}
