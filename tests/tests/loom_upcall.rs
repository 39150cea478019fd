//! The handshakes of vlapic-core under loom: reduced copies, since the page's atomics are not
//! loom's. The steps and their orderings are those of `upcall.rs`, `slot.rs` and `lifecycle.rs`,
//! in the same order; change both together.
//!
//! Each handshake is run as it is, and once without each step that it stands on.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, fence};
use loom::thread;

const OWED: u32 = 1 << 8;
const VECTOR: u32 = 0xF3;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// Between the mark that an upcall is owed and the look at SVR.
    NotifiersFence,
    /// Between the guest's SVR and the look at what is owed.
    OwnersFence,
    /// The look at what is owed when the guest may have written SVR.
    Look,
    /// The vCPU that refused is made to look again.
    Kick,
    /// The debt is marked before SVR is looked at.
    DebtFirst,
    /// Who takes the debt off pays it.
    Claim,
    /// Who accepts looks again whether it is the same life.
    LookAtLife,
    /// INIT owes anew what is pending.
    DebtOfInit,
    /// Who registers a vector looks at what is owed.
    LookAtRegistration,
}

use Missing::*;

/// Slot, page and pending byte of one vCPU, and what the host counts.
struct Vcpu {
    missing: Missing,
    pending: AtomicU32,
    upcall: AtomicU32,
    svr: AtomicU32,
    irr: AtomicU32,
    life: AtomicU32,
    kicked: AtomicBool,
    posts: AtomicUsize,
}

#[derive(PartialEq)]
enum Debt {
    None,
    Paid,
    Owed,
}

impl Vcpu {
    fn new(missing: Missing, upcall: u32, svr: u32) -> Arc<Self> {
        Arc::new(Self {
            missing,
            pending: AtomicU32::new(0),
            upcall: AtomicU32::new(upcall),
            svr: AtomicU32::new(svr),
            irr: AtomicU32::new(0),
            life: AtomicU32::new(0),
            kicked: AtomicBool::new(false),
            posts: AtomicUsize::new(0),
        })
    }

    fn accepts(&self) -> bool {
        self.svr.load(Relaxed) != 0
    }

    /// `Slot::accept`; true if accepted.
    fn accept(&self) -> bool {
        let life = self.life.load(Acquire);
        if !self.accepts() {
            return false;
        }
        self.irr.fetch_or(1, AcqRel);
        let same = self.missing == LookAtLife || self.life.load(Acquire) == life;
        if same || self.accepts() {
            return true;
        }
        if self.irr.fetch_and(0, AcqRel) == 0 {
            return true;
        }
        if self.accepts() {
            self.irr.fetch_or(1, AcqRel);
            return true;
        }
        false
    }

    /// `LocalApic::init`.
    fn init(&self) {
        self.svr.store(0, Relaxed);
        self.life.fetch_add(1, AcqRel);
        self.irr.swap(0, AcqRel);
    }

    fn pay(&self) -> Debt {
        if self.upcall.load(Relaxed) <= OWED {
            return Debt::None;
        }
        if !self.accepts() {
            if self.pending.load(SeqCst) != 0 {
                return Debt::Owed;
            }
            self.upcall.fetch_and(!OWED, SeqCst);
            if self.pending.load(SeqCst) == 0 {
                return Debt::None;
            }
            self.upcall.fetch_or(OWED, SeqCst);
            return Debt::Owed;
        }
        let owed = self.upcall.fetch_and(!OWED, SeqCst) & OWED != 0 || self.missing == Claim;
        if !owed || self.pending.load(SeqCst) == 0 {
            return Debt::None;
        }
        if self.accept() {
            self.posts.fetch_add(1, Relaxed);
            return Debt::Paid;
        }
        self.upcall.fetch_or(OWED, SeqCst);
        Debt::Owed
    }

    fn pay_or_leave_owed(&self) {
        if self.missing != NotifiersFence {
            fence(SeqCst);
        }
        if self.pay() == Debt::Owed && self.missing != Kick {
            self.kicked.store(true, SeqCst);
        }
    }

    fn notify(&self) {
        if self.pending.fetch_or(1, SeqCst) != 0 {
            return;
        }
        if self.missing == DebtFirst && !self.accepts() {
            self.upcall.fetch_or(OWED, SeqCst);
            return;
        }
        self.upcall.fetch_or(OWED, SeqCst);
        self.pay_or_leave_owed();
    }

    fn register(&self) {
        let old = self.upcall.fetch_or(VECTOR, SeqCst);
        if old & OWED != 0 && self.missing != LookAtRegistration {
            self.pay_or_leave_owed();
        }
    }

    fn prepare(&self) {
        if self.upcall.load(Relaxed) > OWED {
            if self.missing != OwnersFence {
                fence(SeqCst);
            }
            self.pay();
        }
    }

    /// All are done: the kick, if there was one, is carried out.
    fn settle_down(&self) {
        if self.kicked.swap(false, SeqCst) {
            self.prepare();
        }
    }
}

fn one_edge(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, VECTOR, 0);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.notify())
        };
        vcpu.svr.store(1, Relaxed);
        if missing != Look {
            vcpu.prepare();
        }
        poster.join().unwrap();
        vcpu.settle_down();
        assert_eq!(vcpu.posts.load(SeqCst), 1);
    });
}

/// Without the kick too, as long as the vCPU's look at the debt comes after a full fence.
fn without_kick(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, VECTOR, 0);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.notify())
        };
        vcpu.svr.store(1, Relaxed);
        fence(SeqCst);
        if missing != Look {
            vcpu.prepare();
        }
        poster.join().unwrap();
        assert_eq!(vcpu.posts.load(SeqCst), 1);
    });
}

fn two_posters(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, VECTOR, 0);
        let posters = [vcpu.clone(), vcpu.clone()].map(|vcpu| thread::spawn(move || vcpu.notify()));
        vcpu.svr.store(1, Relaxed);
        vcpu.prepare();
        for poster in posters {
            poster.join().unwrap();
        }
        vcpu.settle_down();
        assert_eq!(vcpu.posts.load(SeqCst), 1);
    });
}

fn off_and_on(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, VECTOR, 1);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.notify())
        };
        vcpu.svr.store(0, Relaxed);
        vcpu.prepare();
        vcpu.svr.store(1, Relaxed);
        if missing != Look {
            vcpu.prepare();
        }
        poster.join().unwrap();
        vcpu.settle_down();
        assert_eq!(vcpu.posts.load(SeqCst), 1);
    });
}

fn registration(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, 0, 1);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.notify())
        };
        vcpu.register();
        poster.join().unwrap();
        vcpu.settle_down();
        assert_eq!(vcpu.posts.load(SeqCst), 1);
    });
}

/// INIT wipes what was accepted before it and owes anew what is pending.
fn edge_against_init(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, VECTOR, 1);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.notify())
        };
        vcpu.init();
        if missing != DebtOfInit {
            vcpu.upcall.fetch_or(OWED, SeqCst);
        }
        poster.join().unwrap();
        assert_eq!(vcpu.irr.load(SeqCst), 0, "nothing while disabled");
        vcpu.svr.store(1, Relaxed);
        vcpu.prepare();
        assert_eq!(vcpu.irr.load(SeqCst), 1, "and it is not lost");
    });
}

fn post_against_init(missing: Missing) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, 0, 1);
        let poster = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.accept())
        };
        vcpu.init();
        let accepted = poster.join().unwrap();
        assert_eq!(vcpu.irr.load(SeqCst), 0, "accepted: {accepted}");
    });
}

type Handshake = fn(Missing);

const HANDSHAKES: [(&str, Handshake); 7] = [
    ("one edge", one_edge),
    ("without the kick", without_kick),
    ("two posters", two_posters),
    ("off and on again", off_and_on),
    ("registration", registration),
    ("an edge against INIT", edge_against_init),
    ("a post against INIT", post_against_init),
];

#[test]
fn every_upcall_comes_once() {
    HANDSHAKES.into_iter().for_each(|(_, handshake)| handshake(Nothing));
}

/// For each step a handshake that fails without it.
const NEEDED: [(Missing, &str); 9] = [
    (NotifiersFence, "without the kick"),
    (OwnersFence, "off and on again"),
    (Look, "without the kick"),
    (Kick, "one edge"),
    (DebtFirst, "one edge"),
    (Claim, "one edge"),
    (LookAtLife, "a post against INIT"),
    (DebtOfInit, "an edge against INIT"),
    (LookAtRegistration, "registration"),
];

#[test]
fn every_step_is_needed() {
    for (missing, name) in NEEDED {
        let (_, handshake) = HANDSHAKES.into_iter().find(|known| known.0 == name).unwrap();
        let fails = std::panic::catch_unwind(|| handshake(missing)).is_err();
        assert!(fails, "{missing:?}, {name}");
    }
}

const INIT: u32 = 1;
const STARTUP: u32 = 2;
const WAITING: u32 = 4;
const PAGE_SHIFT: u32 = 8;

/// `Latches`, of INIT and SIPI only.
struct Latches(AtomicU32);

impl Latches {
    fn update(&self, change: impl Fn(u32) -> u32) {
        let _ = self.0.fetch_update(AcqRel, Acquire, |word| Some(change(word)));
    }

    fn latch_init(&self) {
        self.update(|word| word & WAITING | INIT);
    }

    fn latch_startup(&self, page: u32) {
        let _ = self.0.fetch_update(AcqRel, Acquire, |word| {
            let accepts = word & (INIT | WAITING) != 0 && word & STARTUP == 0;
            accepts.then_some(word | STARTUP | page << PAGE_SHIFT)
        });
    }

    /// `LocalApic::take_event`: the page of a SIPI, zero for INIT.
    fn take(&self) -> Option<u32> {
        let mut taken = None;
        let step = |word: u32| {
            if word & INIT != 0 {
                taken = Some(0);
                return Some(word);
            }
            taken = Some(word >> PAGE_SHIFT);
            (word & (WAITING | STARTUP) == WAITING | STARTUP).then_some(0)
        };
        self.0.fetch_update(AcqRel, Acquire, step).ok()?;
        if taken == Some(0) {
            self.update(|word| word & !INIT | WAITING);
        }
        taken
    }
}

#[test]
fn the_last_sipi_is_not_lost() {
    loom::model(|| {
        let latches = Arc::new(Latches(AtomicU32::new(WAITING | STARTUP | 1 << PAGE_SHIFT)));
        let sender = {
            let latches = latches.clone();
            thread::spawn(move || {
                latches.latch_init();
                latches.latch_startup(2);
            })
        };
        let mut last = latches.take();
        sender.join().unwrap();
        while let Some(event) = latches.take() {
            last = Some(event);
        }
        assert_eq!(last, Some(2));
    });
}
