//! A thread on another CPU that works against a contender while that one is measured, and sleeps otherwise.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process was given, before anybody chose one.
static CPUS: OnceLock<Vec<usize>> = OnceLock::new();

/// Keeps this thread on one CPU, the last unless `cpu` says another, and leaves the others to opponents.
pub(crate) fn stay_on(cpu: Option<usize>) -> rustix::io::Result<()> {
    let Some(&last) = cpus().last() else { return Ok(()) };
    pin(cpu.unwrap_or(last))
}

/// Why there is nowhere for an opponent to run, if there is nowhere.
pub(crate) fn unavailable() -> Option<String> {
    (cpus().len() < 2).then(|| "two threads: only one CPU".to_owned())
}

/// Ends with the process.
#[derive(Clone, Debug)]
pub(crate) struct Opponent {
    thread: Thread,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Counts starts and stops: odd means that it is to work.
    told: AtomicU64,
    /// What it was told when it last looked.
    heard: AtomicU64,
}

impl Opponent {
    /// `work` is one turn of what it does.
    pub(crate) fn new(mut work: impl FnMut() + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            if let Some(&first) = cpus().first() {
                // On the same CPU there is no contention, and the figures say so.
                let _ = pin(first);
            }
            loop {
                let told = its.told.load(Ordering::SeqCst);
                its.heard.store(told, Ordering::SeqCst);
                if told & 1 == 0 {
                    thread::park();
                    continue;
                }
                while its.told.load(Ordering::Relaxed) == told {
                    work();
                }
            }
        });
        Self { thread: thread.thread().clone(), shared }
    }

    /// Returns once it is at work.
    pub(crate) fn start(&self) {
        let told = self.shared.told.fetch_add(1, Ordering::SeqCst) + 1;
        self.thread.unpark();
        while self.shared.heard.load(Ordering::SeqCst) != told {
            spin_loop();
        }
    }

    /// Returns at once; its present turn may still go on.
    pub(crate) fn stop(&self) {
        self.shared.told.fetch_add(1, Ordering::SeqCst);
    }
}

fn cpus() -> &'static [usize] {
    CPUS.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    })
}

fn pin(cpu: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}
