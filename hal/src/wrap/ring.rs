//! The last few operations, without allocation.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::mutex::SpinMutex;

use super::{Operation, Sink};

/// Keeps the last `N` operations.
///
/// Any number of CPUs may record at once, in interrupt handlers too: recording never waits. An
/// operation that meets another one in its own slot, because `N` others were recorded meanwhile or
/// a reader is there, is given up and counted in [`lost`](Self::lost).
#[derive(Debug)]
pub struct Ring<const N: usize> {
    slots: [SpinMutex<Option<(u64, Operation)>>; N],
    /// How many operations were ever handed in; the next one's number.
    next: AtomicU64,
    lost: AtomicU64,
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    pub const fn new() -> Self {
        Self {
            slots: [const { SpinMutex::new(None) }; N],
            next: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// The operations kept, oldest first. Those recorded while the iterator runs may or may not be
    /// among them.
    pub fn operations(&self) -> impl Iterator<Item = Operation> + '_ {
        // Relaxed: a number only; the slot's lock orders the operation stored under it.
        let end = self.next.load(Ordering::Relaxed);
        let start = end.saturating_sub(N as u64);
        (start..end).filter_map(|number| match *self.slot(number)?.try_lock()? {
            Some((stored, operation)) if stored == number => Some(operation),
            _ => None,
        })
    }

    /// How many operations were ever recorded, kept or not.
    pub fn recorded(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// How many operations were given up because their slot was in use. Those overwritten since are
    /// not among them.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn slot(&self, number: u64) -> Option<&SpinMutex<Option<(u64, Operation)>>> {
        let index = number.checked_rem(N as u64)?;
        self.slots.get(usize::try_from(index).ok()?)
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Sink for Ring<N> {
    fn record(&self, operation: Operation) {
        // Relaxed: the number need only be unique, and rise on each CPU.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match self.slot(number).and_then(SpinMutex::try_lock) {
            Some(mut slot) => *slot = Some((number, operation)),
            None => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::thread;
    use std::vec::Vec;

    use super::*;

    fn ticks<const N: usize>(ring: &Ring<N>) -> Vec<u64> {
        let operations = ring.operations();
        let ticks = operations.filter_map(|operation| match operation {
            Operation::Now { ticks } => Some(ticks),
            _ => None,
        });
        ticks.collect()
    }

    #[test]
    fn the_oldest_give_way() {
        let ring = Ring::<4>::new();
        assert_eq!(ticks(&ring), []);
        for ticks in 0..3 {
            ring.record(Operation::Now { ticks });
        }
        assert_eq!(ticks(&ring), [0, 1, 2]);
        for ticks in 3..10 {
            ring.record(Operation::Now { ticks });
        }
        assert_eq!(ticks(&ring), [6, 7, 8, 9]);
        assert_eq!((ring.recorded(), ring.lost()), (10, 0));
    }

    #[test]
    fn a_ring_without_room_loses_everything() {
        let ring = Ring::<0>::new();
        ring.record(Operation::Now { ticks: 1 });
        assert_eq!(ticks(&ring), []);
        assert_eq!((ring.recorded(), ring.lost()), (1, 1));
    }

    #[test]
    fn a_slot_in_use_is_not_waited_for() {
        let ring = Ring::<2>::new();
        ring.record(Operation::Now { ticks: 0 });
        ring.record(Operation::Now { ticks: 1 });
        let held = ring.slots[0].lock();
        ring.record(Operation::Now { ticks: 2 });
        drop(held);
        // Number 2 was given up; number 0, still in its slot, is too old to be shown.
        assert_eq!(ticks(&ring), [1]);
        assert_eq!((ring.recorded(), ring.lost()), (3, 1));
    }

    #[test]
    fn several_threads_record_in_their_own_order() {
        let ring = Ring::<4096>::new();
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let ring = &ring;
                scope.spawn(move || {
                    for step in 0..1000 {
                        let ticks = thread << 32 | step;
                        ring.record(Operation::Now { ticks });
                    }
                });
            }
        });
        let all = ticks(&ring);
        assert_eq!(all.len(), 4000);
        for thread in 0..4 {
            let steps = all.iter().filter(|ticks| *ticks >> 32 == thread);
            assert!(steps.is_sorted());
        }
    }
}
