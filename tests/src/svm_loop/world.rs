//! A VM, its cores, and how a vCPU is told of something.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use avic::{Backing, Shared};
use vlapic_core::{Delivery, Message, Notify, Slot};
use vlapic_hal::WriteMsr;

use crate::avic_hypervisor::{Config, Storage};
use crate::avic_model::{DOORBELL_MSR, Machine};
use crate::model::{Memory, PhysicalInterrupt};

/// Makes a core leave guest mode.
pub(super) const KICK: u8 = 0xf3;

/// What the threads share.
pub(super) struct World<'m> {
    machine: Mutex<Machine<'m>>,
    pub(super) storage: &'m Storage,
    pub(super) shared: &'m Shared<'m>,
    clock: AtomicU64,
    start: Instant,
    runners: Vec<Runner>,
    /// How often each level-triggered vector was ended.
    pub(super) ends: Vec<AtomicU64>,
    /// The word that the guests share.
    pub(super) word: AtomicU64,
}

/// Where a vCPU is and what it is told: as in the image.
pub(super) struct Runner {
    requested: AtomicBool,
    inside: AtomicBool,
    flush: AtomicBool,
    up: AtomicBool,
    stop: AtomicBool,
    pub(super) exits: AtomicU64,
    /// How often each vector was taken.
    pub(super) taken: Vec<AtomicU64>,
}

impl<'m> World<'m> {
    pub(super) fn new(
        config: &Config,
        storage: &'m Storage,
        shared: &'m Shared<'m>,
        memory: Arc<Memory<'m>>,
    ) -> Self {
        let cores = config.vcpus as u32;
        let words = || (0..256).map(|_| AtomicU64::new(0)).collect();
        let runner = |_| Runner {
            requested: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            flush: AtomicBool::new(false),
            up: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            exits: AtomicU64::new(0),
            taken: words(),
        };
        Self {
            machine: Mutex::new(Machine::new(
                cores,
                memory,
                config.processor,
                config.knobs,
                config.seed,
            )),
            storage,
            shared,
            clock: AtomicU64::new(1000),
            start: Instant::now(),
            runners: (0..config.vcpus).map(runner).collect(),
            ends: words(),
            word: AtomicU64::new(0),
        }
    }

    /// The cores. Whoever has them alone moves.
    pub(super) fn machine(&self) -> MutexGuard<'_, Machine<'m>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// What has not come by now does not come.
    pub(super) fn is_late(&self) -> bool {
        self.start.elapsed() > Duration::from_secs(120)
    }

    pub(super) fn runner(&self, index: usize) -> &Runner {
        &self.runners[index]
    }

    pub(super) fn vcpus(&self) -> usize {
        self.runners.len()
    }

    pub(super) fn slot(&self, index: usize) -> &'m Slot<'m, Backing> {
        &self.shared.vm().slots()[index]
    }

    /// SIPIs for the vCPUs but the first, once they are there.
    pub(super) fn start_others(&self) {
        for index in 1..self.vcpus() {
            while !self.runners[index].up.load(Ordering::SeqCst) && !self.is_stopped(index) {
                std::thread::yield_now();
            }
            let _ = self.slot(index).receive(Delivery::Startup { page: 8 });
            self.notify(0, index, Notify::Kick);
        }
    }

    /// The loop of a vCPU runs.
    pub(super) fn came_up(&self, index: usize) {
        self.runners[index].up.store(true, Ordering::SeqCst);
    }

    /// The loop of a vCPU has ended, or is to.
    pub(super) fn ended(&self, index: usize) {
        self.runners[index].stop.store(true, Ordering::SeqCst);
    }

    /// Ends every vCPU but one.
    pub(super) fn stop_all_but(&self, index: usize) {
        for index in (0..self.vcpus()).filter(|other| *other != index) {
            self.ended(index);
            self.notify(0, index, Notify::Kick);
        }
    }

    pub(super) fn is_stopped(&self, index: usize) -> bool {
        self.runners[index].stop.load(Ordering::SeqCst)
    }

    /// Routes a message and tells who accepts it.
    pub(super) fn send(&self, message: &Message, sender: usize) {
        let receipts: Vec<_> = self.shared.vm().send(message, Some(sender)).collect();
        for (index, receipt) in receipts {
            self.notify(sender, index, receipt.notify);
        }
    }

    /// Carries out what a post by core `by` asked for.
    pub(super) fn notify(&self, by: usize, index: usize, notify: Notify) {
        match notify {
            Notify::None => {}
            Notify::Doorbell { destination } => {
                let rung = self.machine().cores[by].write_msr(DOORBELL_MSR, u64::from(destination));
                assert_eq!(rung, Ok(()), "a doorbell that can be rung");
            }
            _ => {
                self.runners[index].requested.store(true, Ordering::SeqCst);
                let kick = PhysicalInterrupt { destination: index as u32, vector: KICK };
                self.machine().bus().send(kick);
            }
        }
    }

    /// What must hold of any run.
    pub(super) fn check_hygiene(&self) {
        let machine = self.machine();
        assert_eq!(machine.memory().stray_accesses(), 0, "stray accesses");
        for core in &machine.cores {
            assert_eq!(core.leaks(), [], "guest accesses at the physical APIC");
        }
        assert!(self.storage.window_untouched(), "a store to the page behind the window");
    }
}

impl Runner {
    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    pub(super) fn take_request(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// As in the image: `inside` first, so that who takes a mapping away sees it or is seen.
    pub(super) fn enters(&self) -> bool {
        self.inside.store(true, Ordering::SeqCst);
        self.flush.swap(false, Ordering::SeqCst)
    }

    pub(super) fn left(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    pub(super) fn ask_to_flush(&self) {
        self.flush.store(true, Ordering::SeqCst);
    }

    /// It is in guest mode and has not flushed.
    pub(super) fn keeps_translations(&self) -> bool {
        self.inside.load(Ordering::SeqCst) && self.flush.load(Ordering::SeqCst)
    }
}
