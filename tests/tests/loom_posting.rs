//! The handshakes of the posted-interrupt descriptor under loom: reduced copies, since the crates' atomics are not loom's.
//! The steps and their orderings are those of `descriptor.rs`, `posting.rs`, `run_state.rs` and `eoi_exit.rs` in `apicv`, in
//! the same order; change both together.
//!
//! Each handshake is run as it is, and once without each step that it stands on: then loom finds the order of events in
//! which an interrupt is lost, or outlives its vCPU's life.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use loom::thread;

const ON: u32 = 1;
const SN: u32 = 2;
/// NV: of a vCPU that sleeps; else of one that runs.
const WAKEUP: u32 = 4;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// The poster's look at ON comes after its bit in PIR.
    PostersOrder,
    /// The owner's look at PIR comes after its clearing of ON.
    OwnersOrder,
    /// SN and NV are read after ON is set.
    TargetAfterOn,
    /// PIR is looked at when SN is cleared or NV changed, whatever ON says.
    DrainAfterChange,
    /// Between NV's change and the look at PIR before sleep.
    SleepersFence,
    /// The look at PIR before sleep.
    LookBeforeSleep,
    /// The look comes, but before NV's change.
    LateChange,
    /// Between the poster's TMR bit and its look at the EOI-exit bitmap.
    LevelPostersFence,
    /// Between the owner's change of the EOI-exit bitmap and its look at TMR.
    BitmapsFence,
    /// TMR is looked at again after the EOI-exit bitmap was changed.
    LookAtTmr,
    /// The EOI-exit bitmap's review is asked for after the change that wants it.
    ReviewAfterChange,
    /// The asking is taken back before the look at what wants it.
    ReviewedBeforeLook,
    /// The poster looks again whether it is the same life.
    LookAtLife,
}

use Missing::*;

/// Descriptor, staging and page of one vCPU, and what it was told.
struct Vcpu {
    missing: Missing,
    pir: AtomicU32,
    control: AtomicU32,
    staged: AtomicU32,
    eoi_exits: AtomicU32,
    review: AtomicU32,
    routes: AtomicU32,
    tmr: AtomicU32,
    life: AtomicU32,
    accepts: AtomicBool,
    /// A notification reached the CPU that runs it.
    notified: AtomicBool,
    woken: AtomicBool,
    kicked: AtomicBool,
}

impl Vcpu {
    fn new(missing: Missing, control: u32) -> Arc<Self> {
        Arc::new(Self {
            missing,
            pir: AtomicU32::new(0),
            control: AtomicU32::new(control),
            staged: AtomicU32::new(0),
            eoi_exits: AtomicU32::new(0),
            review: AtomicU32::new(0),
            routes: AtomicU32::new(0),
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
        if self.missing != PostersOrder {
            fence(SeqCst);
        }
        let early = self.control.load(SeqCst);
        if early & ON != 0 || self.control.fetch_or(ON, SeqCst) & ON != 0 {
            return;
        }
        // Whom to tell is read after ON is set, by a plain load.
        let since = if self.missing == TargetAfterOn { early } else { self.control.load(Acquire) };
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
        if self.missing != OwnersOrder {
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
            if self.missing != DrainAfterChange {
                collected = self.drain();
            }
        }
        collected | self.collect()
    }

    /// `Posting::set_level_route`.
    fn set_route(&self) {
        // A plain store in the driver. Loom would order that before an exchange that has not read it.
        let ask = || self.review.swap(1, SeqCst);
        if self.missing == ReviewAfterChange {
            ask();
        }
        self.routes.fetch_or(1, SeqCst);
        if self.missing != ReviewAfterChange {
            ask();
        }
    }

    /// `interrupt_status::load` as far as routes are concerned.
    fn load_eoi_exits(&self) {
        if self.review.load(Acquire) == 0 {
            return;
        }
        if self.missing != ReviewedBeforeLook {
            self.review.swap(0, SeqCst);
        }
        self.eoi_exits.store(self.routes.load(Acquire), Release);
        if self.missing == ReviewedBeforeLook {
            self.review.swap(0, SeqCst);
        }
    }

    /// `Vcpu::block`: what was found; nothing means that the vCPU sleeps.
    fn block(&self) -> u32 {
        let early = self.pir.load(Acquire);
        self.set_target(WAKEUP);
        if self.missing != SleepersFence {
            fence(SeqCst);
        }
        let pending = match self.missing {
            LookBeforeSleep => 0,
            LateChange => early,
            _ => self.pir.load(Acquire),
        };
        if pending != 0 {
            self.control.fetch_or(ON, SeqCst);
        }
        self.collect()
    }
}

/// Two posters, of which the first `devices` are devices, against a vCPU in `control` whose owner does `owner`; `told`
/// looks at who was told afterwards.
fn two_posts(
    missing: Missing,
    control: u32,
    devices: u32,
    owner: fn(&Vcpu) -> u32,
    told: fn(&Vcpu) -> bool,
) {
    let mut model = loom::model::Builder::new();
    // Three threads: every interleaving with up to so many switches that nothing forces.
    model.preemption_bound = Some(2);
    model.check(move || {
        let vcpu = Vcpu::new(missing, control);
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

fn entry(missing: Missing, devices: u32) {
    for control in [0, SN, WAKEUP] {
        two_posts(missing, control, devices, Vcpu::run, |vcpu| vcpu.notified.load(SeqCst));
    }
}

fn sleep(missing: Missing, devices: u32) {
    for control in [0, SN] {
        two_posts(missing, control, devices, Vcpu::block, |vcpu| vcpu.woken.load(SeqCst));
    }
}

/// Preempted under posts, then run again.
fn preemption(missing: Missing, devices: u32) {
    let owner = |vcpu: &Vcpu| {
        vcpu.control.fetch_or(SN, SeqCst);
        vcpu.run()
    };
    two_posts(missing, 0, devices, owner, |vcpu| vcpu.notified.load(SeqCst));
}

/// A notification is outstanding, its post taken already, so the poster tells nobody: the owner who clears ON finds its bit.
fn outstanding(missing: Missing, _: u32) {
    for owner in [Vcpu::run, Vcpu::block] {
        loom::model(move || {
            let vcpu = Vcpu::new(missing, ON);
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
}

/// The bit of a vector is dropped from the EOI-exit bitmap just as the vector comes as level-triggered: either it is staged,
/// or the VMCS keeps the bit.
fn dropped_eoi_exit(missing: Missing, _: u32) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, 0);
        vcpu.eoi_exits.store(1, SeqCst);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                vcpu.tmr.fetch_or(1, AcqRel);
                if missing != LevelPostersFence {
                    fence(SeqCst);
                }
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
            if missing != BitmapsFence {
                fence(SeqCst);
            }
            vmcs = if missing == LookAtTmr { 0 } else { vcpu.tmr.load(Acquire) };
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

/// A route comes while the owner is in its entry work, for whatever reason: the entry after that has loaded it.
fn route(missing: Missing, _: u32) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, 0);
        vcpu.review.store(1, SeqCst);
        let other = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.set_route())
        };
        vcpu.load_eoi_exits();
        other.join().expect("the other CPU");
        vcpu.load_eoi_exits();
        assert_eq!(vcpu.eoi_exits.load(SeqCst), 1);
    });
}

/// INIT and a post: nothing of the old life is left in PIR once both are done.
fn init(missing: Missing, _: u32) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, 0);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                let life = vcpu.life.load(Acquire);
                if !vcpu.accepts.load(Relaxed) {
                    return;
                }
                vcpu.post(1);
                let same = missing == LookAtLife || vcpu.life.load(Acquire) == life;
                if !same && !vcpu.accepts.load(Relaxed) {
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

type Handshake = fn(Missing, u32);

/// Each with its name and the most devices among its two posters.
const HANDSHAKES: [(&str, Handshake, u32); 7] = [
    ("entry", entry, 2),
    ("sleep", sleep, 2),
    ("preemption", preemption, 2),
    ("outstanding", outstanding, 0),
    ("dropped EOI exit", dropped_eoi_exit, 0),
    ("route", route, 0),
    ("INIT", init, 0),
];

#[test]
fn nothing_is_lost() {
    for (_, handshake, devices) in HANDSHAKES {
        (0..=devices).for_each(|devices| handshake(Nothing, devices));
    }
}

/// For each step the handshakes that fail without it, and with how many devices.
const NEEDED: [(Missing, &[(&str, u32)]); 13] = [
    (PostersOrder, &[("outstanding", 0)]),
    (OwnersOrder, &[("entry", 2), ("preemption", 2), ("outstanding", 0)]),
    (TargetAfterOn, &[("entry", 0), ("sleep", 0), ("preemption", 0)]),
    (DrainAfterChange, &[("entry", 2), ("preemption", 2)]),
    (SleepersFence, &[("sleep", 2)]),
    (LookBeforeSleep, &[("sleep", 2)]),
    (LateChange, &[("sleep", 2)]),
    (LevelPostersFence, &[("dropped EOI exit", 0)]),
    (BitmapsFence, &[("dropped EOI exit", 0)]),
    (LookAtTmr, &[("dropped EOI exit", 0)]),
    (ReviewAfterChange, &[("route", 0)]),
    (ReviewedBeforeLook, &[("route", 0)]),
    (LookAtLife, &[("INIT", 0)]),
];

#[test]
fn every_step_is_needed() {
    for (missing, cases) in NEEDED {
        for &(name, devices) in cases {
            let (_, handshake, _) = HANDSHAKES.into_iter().find(|known| known.0 == name).unwrap();
            let fails = std::panic::catch_unwind(|| handshake(missing, devices)).is_err();
            assert!(fails, "{missing:?}, {name}, {devices} devices");
        }
    }
}
