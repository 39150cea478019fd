//! `Route::attach` of the AVIC driver under loom: a device's entry is given to a vCPU that comes or goes at that moment,
//! while the device interrupts. A reduced copy of `attach` (`route.rs`), of `assign` and `depart`
//! (`run_state.rs`) and of `Shared::steer` in `avic`, in the same order; change both together.
//!
//! Run as it is, and once with each step left out: then loom finds the order of events in which the entry stays wrong or
//! an interrupt is lost.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use loom::thread;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// The target is stored, but after all else.
    EarlyTarget,
    /// Attaching: between target and entry, and the second look at where the vCPU is.
    Fence,
    /// Attaching: the second look at where the vCPU is.
    SecondLook,
    /// Attaching: the vCPU is told of what may have come.
    Announcement,
    /// The vCPU: between where it is and the look at the targets.
    OwnersFence,
    /// The vCPU: its entries follow it.
    Steering,
    /// The vCPU: between its entries and the look at IRR.
    LastFence,
    /// The vCPU: the look at IRR.
    Look,
}

use Missing::*;

const PREEMPTED: u32 = 0;
const DOORBELL: u32 = 1;
const BLOCKED: u32 = 3;

/// IsRun and GALogIntr.
const IS_RUN: u32 = 1;
const LOG: u32 = 2;

fn entry_for(whereabouts: u32) -> u32 {
    match whereabouts {
        DOORBELL => IS_RUN,
        BLOCKED => LOG,
        _ => 0,
    }
}

struct Machine {
    missing: Missing,
    irr: AtomicU32,
    whereabouts: AtomicU32,
    target: AtomicBool,
    irte: AtomicU32,
    doorbell: AtomicBool,
    woken: AtomicBool,
}

impl Machine {
    /// The entry is enabled, and is as the hypervisor has made it before it attaches it.
    fn new(missing: Missing, whereabouts: u32, irte: u32) -> Arc<Self> {
        Arc::new(Self {
            missing,
            irr: AtomicU32::new(0),
            whereabouts: AtomicU32::new(whereabouts),
            target: AtomicBool::new(false),
            irte: AtomicU32::new(irte),
            doorbell: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        })
    }

    fn fence_unless(&self, missing: Missing) {
        if self.missing != missing {
            fence(SeqCst);
        }
    }

    /// `IrteCell::steer`.
    fn steer(&self, whereabouts: u32) {
        let new = entry_for(whereabouts);
        let _ = self.irte.fetch_update(SeqCst, SeqCst, |old| Some(new).filter(|&new| new != old));
    }

    /// `Backing::announce`, carried out.
    fn announce(&self) {
        fence(SeqCst);
        match self.whereabouts.load(SeqCst) {
            DOORBELL => self.doorbell.store(true, SeqCst),
            BLOCKED => self.woken.store(true, SeqCst),
            _ => {}
        }
    }

    /// `Route::attach`.
    fn attach(&self) {
        if self.missing != EarlyTarget {
            self.target.store(true, SeqCst);
        }
        let mut whereabouts = self.whereabouts.load(SeqCst);
        loop {
            self.steer(whereabouts);
            self.fence_unless(Fence);
            let now = self.whereabouts.load(SeqCst);
            if now == whereabouts || self.missing == SecondLook {
                break;
            }
            whereabouts = now;
        }
        self.target.store(true, SeqCst);
        if self.missing != Announcement {
            self.announce();
        }
    }

    /// `Vcpu::assign` and `Vcpu::depart`, and the look at IRR that follows: whether it is set.
    fn move_to(&self, whereabouts: u32) -> bool {
        self.whereabouts.store(whereabouts, Release);
        self.fence_unless(OwnersFence);
        if self.target.load(SeqCst) && self.missing != Steering {
            self.steer(whereabouts);
        }
        self.fence_unless(LastFence);
        self.missing != Look && self.irr.load(Relaxed) != 0
    }

    /// An interrupt through the IOMMU: IRR, then the entry.
    fn device(&self) {
        self.irr.fetch_or(1, AcqRel);
        fence(SeqCst);
        match self.irte.load(SeqCst) {
            IS_RUN => self.doorbell.store(true, SeqCst),
            LOG => self.announce(),
            _ => {}
        }
    }
}

/// Where it is before, and after.
type Change = (u32, u32);

const CHANGES: [Change; 5] = [
    (DOORBELL, BLOCKED),
    (DOORBELL, PREEMPTED),
    (PREEMPTED, DOORBELL),
    (BLOCKED, DOORBELL),
    (PREEMPTED, BLOCKED),
];

fn spawn(machine: &Arc<Machine>, run: fn(&Machine)) -> thread::JoinHandle<()> {
    let machine = machine.clone();
    thread::spawn(move || run(&machine))
}

/// The entry ends up as the vCPU is.
fn attach_and_move(missing: Missing, (from, to): Change) {
    loom::model(move || {
        let machine = Machine::new(missing, from, 0);
        let attacher = spawn(&machine, Machine::attach);
        let _ = machine.move_to(to);
        attacher.join().expect("a thread that ends");
        assert_eq!(machine.irte.load(SeqCst), entry_for(to), "wrong");
    });
}

/// Nobody moves; the vCPU is told, or will look.
fn attach_and_interrupt(missing: Missing, (_, at): Change) {
    loom::model(move || {
        let machine = Machine::new(missing, at, 0);
        let attacher = spawn(&machine, Machine::attach);
        machine.device();
        attacher.join().expect("a thread that ends");
        check_told(&machine, at, false);
    });
}

/// All three at once. The entry asks for the log from the start, so that only what is done to it can lose anything.
fn attach_move_and_interrupt(missing: Missing, (from, to): Change) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let machine = Machine::new(missing, from, LOG);
        let attacher = spawn(&machine, Machine::attach);
        let device = spawn(&machine, Machine::device);
        let seen = machine.move_to(to);
        attacher.join().expect("a thread that ends");
        device.join().expect("a thread that ends");
        check_told(&machine, to, seen);
    });
}

fn check_told(machine: &Machine, at: u32, seen: bool) {
    let told = match at {
        DOORBELL => machine.doorbell.load(SeqCst),
        BLOCKED => machine.woken.load(SeqCst),
        _ => true,
    };
    assert!(seen || told, "lost");
}

type Race = fn(Missing, Change);

#[test]
fn a_route_finds_its_vcpu_and_no_interrupt_is_lost() {
    for change in CHANGES {
        for race in [attach_and_move as Race, attach_and_interrupt, attach_move_and_interrupt] {
            race(Nothing, change);
        }
    }
}

/// Whether loom finds something wrong, whatever the change.
fn goes_wrong(race: Race, missing: Missing) -> bool {
    let fails = |&change: &Change| std::panic::catch_unwind(move || race(missing, change)).is_err();
    CHANGES.iter().any(fails)
}

#[test]
fn every_step_is_needed() {
    for missing in [EarlyTarget, Fence, SecondLook, OwnersFence, Steering] {
        assert!(goes_wrong(attach_and_move, missing), "{missing:?}");
    }
    assert!(goes_wrong(attach_and_interrupt, Announcement));
    for missing in [Announcement, LastFence, Look] {
        assert!(goes_wrong(attach_move_and_interrupt, missing), "{missing:?}");
    }
}
