//! The handshakes of the posted-interrupt descriptor under loom: reduced copies, since the crates' atomics are not loom's.
//! The steps and their orderings are those of `descriptor.rs`, `posting.rs`, `run_state.rs` and `eoi_exit.rs` in `apicv`, in
//! the same order; change both together.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use loom::thread;

const ON: u32 = 1;
const SN: u32 = 2;
/// NV: of a vCPU that sleeps; else of one that runs.
const WAKEUP: u32 = 4;

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// The poster's look at ON comes after its bit in PIR.
    PostersOrder,
    /// The owner's look at PIR comes after its clearing of ON.
    OwnersOrder,
}

/// Descriptor, staging and page of one vCPU, and what it was told.
struct Vcpu {
    missing: Missing,
    pir: AtomicU32,
    control: AtomicU32,
    staged: AtomicU32,
    eoi_exits: AtomicU32,
    tmr: AtomicU32,
    life: AtomicU32,
    accepts: AtomicBool,
    /// A notification reached the CPU that runs it.
    notified: AtomicBool,
    woken: AtomicBool,
    kicked: AtomicBool,
}

impl Vcpu {
    fn new(control: u32) -> Arc<Self> {
        Self::without(Missing::Nothing, control)
    }

    fn without(missing: Missing, control: u32) -> Arc<Self> {
        Arc::new(Self {
            missing,
            pir: AtomicU32::new(0),
            control: AtomicU32::new(control),
            staged: AtomicU32::new(0),
            eoi_exits: AtomicU32::new(0),
            tmr: AtomicU32::new(0),
            life: AtomicU32::new(0),
            accepts: AtomicBool::new(true),
            notified: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
        })
    }

    /// `PostedDescriptor::post`, and carrying out what it asks for.
    fn post(&self, bit: u32) {
        if self.pir.fetch_or(bit, SeqCst) & bit != 0 {
            return;
        }
        // OR and load are SeqCst. Loom takes that for acquire and release, so the order of the two is a fence.
        if self.missing != Missing::PostersOrder {
            fence(SeqCst);
        }
        if self.control.load(SeqCst) & ON != 0 {
            return;
        }
        if self.control.fetch_or(ON, SeqCst) & ON != 0 {
            return;
        }
        // Whom to tell is read after ON is set, by a plain load.
        let since = self.control.load(Acquire);
        if since & SN == 0 {
            self.tell(since);
        }
    }

    /// VT-d: its one operation on the whole descriptor, in two steps, and locked even if it changes no control bit.
    fn device_post(&self, bit: u32) {
        self.pir.fetch_or(bit, SeqCst);
        fence(SeqCst);
        let announce = |word: u32| (word & (ON | SN) == 0).then_some(word | ON);
        if let Ok(before) = self.control.fetch_update(SeqCst, SeqCst, announce) {
            self.tell(before);
        }
    }

    fn tell(&self, control: u32) {
        let told = if control & WAKEUP != 0 { &self.woken } else { &self.notified };
        told.store(true, SeqCst);
    }

    /// `PostedDescriptor::drain`.
    fn drain(&self) -> u32 {
        if self.control.load(Acquire) & ON != 0 {
            self.control.fetch_and(!ON, SeqCst);
        }
        // As in `post`, of this and the look at PIR.
        if self.missing != Missing::OwnersOrder {
            fence(SeqCst);
        }
        if self.pir.load(Relaxed) == 0 { 0 } else { self.pir.swap(0, SeqCst) }
    }

    /// `Posting::collect`.
    fn collect(&self) -> u32 {
        if self.control.load(Acquire) & (ON | SN) == 0 { 0 } else { self.drain() }
    }

    fn set_target(&self, target: u32) {
        let replace = |word| Some(word & ON | target);
        let _ = self.control.fetch_update(SeqCst, SeqCst, replace);
    }

    /// `Posting::run` and the collecting of entry work.
    fn run(&self) -> u32 {
        let mut collected = 0;
        if self.control.load(Acquire) & (SN | WAKEUP) != 0 {
            self.set_target(0);
            collected = self.drain();
        }
        collected | self.collect()
    }

    /// `Vcpu::block`: what was found; nothing means that the vCPU sleeps.
    fn block(&self) -> u32 {
        self.set_target(WAKEUP);
        fence(SeqCst);
        if self.pir.load(Acquire) != 0 {
            self.control.fetch_or(ON, SeqCst);
        }
        self.collect()
    }
}

/// Two posters, of which the first `devices` are devices, against a vCPU in `control` whose owner does `owner`; `told` looks at who was told afterwards.
fn two_posts(control: u32, devices: u32, owner: fn(&Vcpu) -> u32, told: fn(&Vcpu) -> bool) {
    let mut model = loom::model::Builder::new();
    // Three threads: every interleaving with up to so many switches that nothing forces.
    model.preemption_bound = Some(2);
    model.check(move || {
        let vcpu = Vcpu::new(control);
        let posters = [1, 2].map(|bit| {
            let vcpu = vcpu.clone();
            thread::spawn(
                move || {
                    if bit <= devices { vcpu.device_post(bit) } else { vcpu.post(bit) }
                },
            )
        });
        let collected = owner(&vcpu);
        for poster in posters {
            poster.join().expect("a poster");
        }
        let left = vcpu.pir.load(SeqCst);
        assert_eq!(collected | left, 3, "no post vanishes");
        assert_eq!(collected & left, 0, "none is doubled");
        assert!(left == 0 || told(&vcpu), "what was not collected notifies");
    });
}

#[test]
fn posts_and_an_entry() {
    for devices in 0..=2 {
        for control in [0, SN, WAKEUP] {
            two_posts(control, devices, Vcpu::run, |vcpu| vcpu.notified.load(SeqCst));
        }
    }
}

#[test]
fn posts_and_going_to_sleep() {
    for devices in 0..=2 {
        for control in [0, SN] {
            two_posts(control, devices, Vcpu::block, |vcpu| vcpu.woken.load(SeqCst));
        }
    }
}

/// Preempted under posts, then run again.
#[test]
fn posts_while_sn_comes_and_goes() {
    for devices in 0..=2 {
        let owner = |vcpu: &Vcpu| {
            vcpu.control.fetch_or(SN, SeqCst);
            vcpu.run()
        };
        two_posts(0, devices, owner, |vcpu| vcpu.notified.load(SeqCst));
    }
}

/// A notification is outstanding, its post taken already, so the poster tells nobody: the owner who clears ON finds its bit.
fn post_beside_an_outstanding_one(missing: Missing, owner: fn(&Vcpu) -> u32) {
    loom::model(move || {
        let vcpu = Vcpu::without(missing, ON);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.post(2))
        };
        let collected = owner(&vcpu);
        poster.join().expect("a poster");
        let told = vcpu.notified.load(SeqCst) || vcpu.woken.load(SeqCst);
        assert!(collected & 2 != 0 || told);
    });
}

#[test]
fn a_set_on_is_not_looked_at_too_early() {
    for owner in [Vcpu::run, Vcpu::block] {
        post_beside_an_outstanding_one(Missing::Nothing, owner);
    }
}

/// Without its order a post may find an ON that the owner has cleared already, and the owner a PIR without its bit.
#[test]
fn both_orders_are_needed() {
    for missing in [Missing::PostersOrder, Missing::OwnersOrder] {
        let lost = std::panic::catch_unwind(|| post_beside_an_outstanding_one(missing, Vcpu::run));
        assert!(lost.is_err());
    }
}

/// The bit of a vector is dropped from the EOI-exit bitmap just as the vector comes as level-triggered: either it is staged,
/// or the VMCS keeps the bit.
#[test]
fn level_post_and_a_dropped_eoi_exit() {
    loom::model(|| {
        let vcpu = Vcpu::new(0);
        vcpu.eoi_exits.store(1, SeqCst);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                vcpu.tmr.fetch_or(1, AcqRel);
                fence(SeqCst);
                if vcpu.eoi_exits.load(Acquire) == 0 {
                    vcpu.staged.fetch_or(1, SeqCst);
                    vcpu.kicked.store(true, SeqCst);
                } else {
                    vcpu.post(1);
                }
            })
        };
        // `eoi_exit::change`; the VMCS has the bit so far.
        let mut vmcs = 1;
        if vcpu.tmr.load(Acquire) == 0 {
            vcpu.eoi_exits.store(0, Release);
            fence(SeqCst);
            vmcs = vcpu.tmr.load(Acquire);
            vcpu.eoi_exits.store(vmcs, Release);
        }
        poster.join().expect("a poster");
        if vcpu.pir.load(SeqCst) != 0 {
            assert_eq!(vmcs, 1, "the guest's EOI would not exit");
        } else {
            assert!(vcpu.staged.load(SeqCst) != 0 && vcpu.kicked.load(SeqCst));
        }
    });
}

/// INIT and a post: nothing of the old life is left in PIR once both are done.
#[test]
fn post_and_init() {
    loom::model(|| {
        let vcpu = Vcpu::new(0);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                let life = vcpu.life.load(Acquire);
                if !vcpu.accepts.load(Relaxed) {
                    return;
                }
                vcpu.post(1);
                if vcpu.life.load(Acquire) != life && !vcpu.accepts.load(Relaxed) {
                    vcpu.pir.fetch_and(!1, SeqCst);
                }
            })
        };
        vcpu.accepts.store(false, Relaxed);
        vcpu.life.fetch_add(1, AcqRel);
        // `Posting::discard`.
        vcpu.control.fetch_and(!ON, SeqCst);
        vcpu.pir.swap(0, SeqCst);
        poster.join().expect("a poster");
        assert_eq!(vcpu.pir.load(SeqCst), 0);
    });
}
