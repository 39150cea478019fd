//! The handshakes of the AVIC driver with posters, hardware and IOMMU under loom: reduced copies, since the page's and
//! the tables' atomics are not loom's. The steps and their orderings are those of `backing.rs` (post, announce),
//! `run_state.rs` (assign, depart, block), `settle.rs` (survey), `route.rs` (steer) and `logical_table.rs` in `avic`, in the
//! same order; change both together.
//!
//! Each handshake is run as it is, and once with each fence or look left out that it stands on: then loom finds the
//! order of events in which an interrupt is lost.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use loom::thread;

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// Between the poster's IRR bit and its look at where the vCPU is: a locked OR, which on x86 is a fence, and which loom
    /// does not take for one.
    PostersOrder,
    /// Between the vCPU's change of whereabouts and its look at IRR.
    OwnersFence,
    /// The look at IRR after the change.
    Look,
    /// The look comes, but before the change.
    LateLook,
    /// Exit 401 and log are not followed by a look at where the vCPU is.
    Announcement,
}

use Missing::*;

const PREEMPTED: u32 = 0;
const DOORBELL: u32 = 1;
const KICK: u32 = 2;
const BLOCKED: u32 = 3;

/// Page, whereabouts and entries of one vCPU, and how it was told.
struct Vcpu {
    missing: Missing,
    irr: AtomicU32,
    whereabouts: AtomicU32,
    /// IsRunning of the physical table.
    running: AtomicBool,
    /// IsRun and GALogIntr of the remapping entry.
    irte: AtomicU32,
    doorbell: AtomicBool,
    kicked: AtomicBool,
    woken: AtomicBool,
}

const IS_RUN: u32 = 1;
const LOG: u32 = 2;

impl Vcpu {
    fn new(missing: Missing, whereabouts: u32) -> Arc<Self> {
        let runs = whereabouts == DOORBELL;
        Arc::new(Self {
            missing,
            irr: AtomicU32::new(0),
            whereabouts: AtomicU32::new(whereabouts),
            running: AtomicBool::new(runs),
            irte: AtomicU32::new(if runs { IS_RUN } else { 0 }),
            doorbell: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        })
    }

    fn order_of_poster(&self) {
        if self.missing != PostersOrder {
            fence(SeqCst);
        }
    }

    fn fence_of_owner(&self) {
        if self.missing != OwnersFence {
            fence(SeqCst);
        }
    }

    /// `Backing::tell`, carried out.
    fn tell(&self) {
        match self.whereabouts.load(SeqCst) {
            DOORBELL => self.doorbell.store(true, SeqCst),
            KICK => self.kicked.store(true, SeqCst),
            BLOCKED => self.woken.store(true, SeqCst),
            _ => {}
        }
    }

    /// `Backing::post`.
    fn post(&self) {
        self.irr.fetch_or(1, AcqRel);
        self.order_of_poster();
        self.tell();
    }

    /// `Backing::announce`.
    fn announce(&self) {
        if self.missing != Announcement {
            fence(SeqCst);
            self.tell();
        }
    }

    /// An IPI by hardware: a locked OR, which is a full barrier, then IsRunning; exit 401 if it is clear.
    fn ipi(&self) {
        self.irr.fetch_or(1, AcqRel);
        self.order_of_poster();
        if self.running.load(SeqCst) {
            self.doorbell.store(true, SeqCst);
        } else {
            self.announce();
        }
    }

    /// A post by the IOMMU: IRR, then IsRun; else the log, if it is asked for.
    fn device(&self) {
        self.irr.fetch_or(1, AcqRel);
        self.order_of_poster();
        let irte = self.irte.load(SeqCst);
        if irte & IS_RUN != 0 {
            self.doorbell.store(true, SeqCst);
        } else if irte & LOG != 0 {
            self.announce();
        }
    }

    /// `Vcpu::depart`, but for the fence at its end.
    fn leave(&self, whereabouts: u32) {
        self.whereabouts.store(whereabouts, Release);
        self.fence_of_owner();
        let log = if whereabouts == PREEMPTED { 0 } else { LOG };
        self.irte.store(log, SeqCst);
        self.running.store(false, Release);
    }

    fn look(&self) -> bool {
        self.irr.load(Relaxed) != 0
    }

    /// `Vcpu::block`, or the change to emulation: whether IRR was seen set.
    fn depart(&self, whereabouts: u32) -> bool {
        let early = self.look();
        self.leave(whereabouts);
        self.fence_of_owner();
        match self.missing {
            Look => false,
            LateLook => early,
            _ => self.look(),
        }
    }

    /// `Vcpu::assign` to a CPU with AVIC, and VMRUN's evaluation of IRR.
    fn enter(&self) -> bool {
        let early = self.look();
        self.running.store(true, Release);
        self.whereabouts.store(DOORBELL, Release);
        self.fence_of_owner();
        self.irte.store(IS_RUN, SeqCst);
        self.fence_of_owner();
        match self.missing {
            Look => false,
            LateLook => early,
            _ => self.look(),
        }
    }
}

const POSTERS: [fn(&Vcpu); 3] = [Vcpu::post, Vcpu::ipi, Vcpu::device];
const IPI: usize = 1;

/// A post, an IPI or a device against `owner`; afterwards `told` has to hold.
fn race(
    missing: Missing,
    start: u32,
    poster: fn(&Vcpu),
    owner: fn(&Vcpu) -> bool,
    told: fn(&Vcpu) -> bool,
) {
    loom::model(move || {
        let vcpu = Vcpu::new(missing, start);
        let other = {
            let vcpu = vcpu.clone();
            thread::spawn(move || poster(&vcpu))
        };
        let seen = owner(&vcpu);
        other.join().expect("a thread that ends");
        assert!(seen || told(&vcpu), "lost");
    });
}

/// It runs and goes to sleep: a doorbell comes too late for it.
fn block(missing: Missing, poster: usize) {
    let owner = |vcpu: &Vcpu| vcpu.depart(BLOCKED);
    race(missing, DOORBELL, POSTERS[poster], owner, |vcpu| vcpu.woken.load(SeqCst));
}

/// It runs, was kicked because of an inhibit, and enters again without AVIC: a doorbell does nothing then.
fn inhibit(missing: Missing, poster: usize) {
    let owner = |vcpu: &Vcpu| vcpu.depart(KICK);
    race(missing, DOORBELL, POSTERS[poster], owner, |vcpu| vcpu.kicked.load(SeqCst));
}

/// It waits for a CPU, where nobody is told, and enters.
fn enter(missing: Missing, poster: usize) {
    race(missing, PREEMPTED, POSTERS[poster], Vcpu::enter, |vcpu| vcpu.doorbell.load(SeqCst));
}

#[test]
fn posts_against_block_inhibit_and_entry() {
    for poster in 0..POSTERS.len() {
        block(Nothing, poster);
        inhibit(Nothing, poster);
        enter(Nothing, poster);
    }
}

/// Sleeping, then running again: whoever comes in between is seen by one of the two.
#[test]
fn ipi_against_block_and_return() {
    loom::model(|| {
        let vcpu = Vcpu::new(Nothing, DOORBELL);
        let other = {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.ipi())
        };
        let before = vcpu.depart(BLOCKED);
        let after = vcpu.enter();
        other.join().expect("a thread that ends");
        let told = vcpu.doorbell.load(SeqCst) || vcpu.woken.load(SeqCst);
        assert!(before || after || told, "lost");
    });
}

/// What is left out, and which poster.
type Handshake = fn(Missing, usize);

/// Whether loom finds a lost interrupt.
fn loses(handshake: Handshake, missing: Missing, poster: usize) -> bool {
    std::panic::catch_unwind(|| handshake(missing, poster)).is_err()
}

#[test]
fn every_fence_and_every_look_is_needed() {
    let handshakes: [(&str, Handshake); 3] =
        [("block", block), ("inhibit", inhibit), ("enter", enter)];
    for (name, handshake) in handshakes {
        for missing in [PostersOrder, OwnersFence, Look, LateLook] {
            for poster in 0..POSTERS.len() {
                let which = missing as usize;
                // An IPI that finds a vCPU not running yet exits, and that look has a fence of its own.
                let spared = name == "enter" && missing == PostersOrder && poster == IPI;
                let lost = loses(handshake, missing, poster);
                assert_eq!(lost, !spared, "{name}, {which}, poster {poster}");
            }
        }
    }
    for (name, handshake) in &handshakes[..2] {
        for poster in [1, 2] {
            assert!(loses(*handshake, Announcement, poster), "{name}, poster {poster}");
        }
    }
}

/// One place of the logical table, and the logical IDs of the two vCPUs that want it.
struct Table {
    missing: Missing,
    place: AtomicU32,
    pages: [AtomicU32; 2],
}

const EMPTY: u32 = 0xff;
const VALID: u32 = 1 << 31;

impl Table {
    /// The guest of vCPU `me` has written LDR: `Vcpu::addressing_changed` and `Vcpu::survey`.
    fn rename(&self, me: u32) {
        self.pages[me as usize].store(1, Relaxed);
        let claim = self.place.compare_exchange(EMPTY, me, SeqCst, SeqCst);
        if self.missing != OwnersFence {
            fence(SeqCst);
        }
        let taken = self.missing != Look && self.pages[1 - me as usize].load(Relaxed) == 1;
        if taken || claim.is_err() && self.missing != Look {
            self.place.swap(EMPTY, SeqCst);
        } else if self.missing == LateLook {
            self.place.store(me | VALID, SeqCst);
        } else {
            let _ = self.place.compare_exchange(me, me | VALID, SeqCst, SeqCst);
        }
    }
}

/// Two vCPUs take the same logical ID: in the end no entry leads to one of them alone.
fn duplicates(missing: Missing, _: usize) {
    loom::model(move || {
        let table = Arc::new(Table {
            missing,
            place: AtomicU32::new(EMPTY),
            pages: [AtomicU32::new(0), AtomicU32::new(0)],
        });
        let other = {
            let table = table.clone();
            thread::spawn(move || table.rename(1))
        };
        table.rename(0);
        other.join().expect("a thread that ends");
        assert_eq!(table.place.load(SeqCst) & VALID, 0, "lost");
    });
}

#[test]
fn duplicate_logical_ids() {
    duplicates(Nothing, 0);
    assert!(loses(duplicates, Look, 0), "without the look at the other pages");
    assert!(loses(duplicates, LateLook, 0), "published although it was cleared meanwhile");
}
