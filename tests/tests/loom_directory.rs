//! Model checking of a VM's directory: who is listed while somebody's logical address changes. A reduced copy of
//! `vlapic_core::Directory` and of how routing asks it: one APIC, two logical addresses, loom's atomics.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32};
use loom::thread;

/// Bits 31:16 count changes, bits 15:0 those who are not listed.
const CHANGE: u32 = 1 << 16 | 1;

struct Vm {
    /// The page: which logical addresses the APIC has, one bit each.
    page: AtomicU32,
    /// Whether the APIC is listed at each address.
    members: [AtomicBool; 2],
    state: AtomicU32,
}

impl Vm {
    fn new(addresses: u32) -> Arc<Self> {
        Arc::new(Self {
            page: AtomicU32::new(addresses),
            members: [addresses & 1 != 0, addresses & 2 != 0].map(AtomicBool::new),
            state: AtomicU32::new(0),
        })
    }

    /// The guest stores, the owner lists. `listed`: false, if it is no longer to be listed.
    fn change(&self, to: u32, listed: bool) {
        let from = self.page.load(Relaxed);
        self.page.store(to, Relaxed);
        self.state.fetch_add(CHANGE, SeqCst);
        for (bit, member) in self.members.iter().enumerate() {
            if listed && to & 1 << bit != 0 {
                member.swap(true, SeqCst);
            }
        }
        for (bit, member) in self.members.iter().enumerate() {
            if from & 1 << bit != 0 && !(listed && to & 1 << bit != 0) {
                member.swap(false, SeqCst);
            }
        }
        if listed {
            self.state.fetch_sub(1, SeqCst);
        }
    }

    /// Whether a sender to `destination` asks the APIC.
    fn asks(&self, destination: u32) -> bool {
        let state = self.state.load(Acquire);
        if state & 0xFFFF != 0 {
            return true;
        }
        let mut listed = false;
        for (bit, member) in self.members.iter().enumerate() {
            listed |= destination & 1 << bit != 0 && member.load(Acquire);
        }
        listed || self.state.load(Relaxed) != state
    }
}

/// A destination that the old and the new address match finds the APIC at any moment.
#[test]
fn a_change_hides_nobody() {
    for (from, to, listed) in
        [(1, 2, true), (2, 1, true), (1, 3, true), (3, 2, true), (1, 2, false)]
    {
        loom::model(move || {
            let vm = Vm::new(from);
            let owner = Arc::clone(&vm);
            let owner = thread::spawn(move || owner.change(to, listed));
            assert!(vm.asks(3), "{from} to {to}");
            owner.join().unwrap();
            assert!(vm.asks(to));
        });
    }
}

/// What the guest does after the write is seen only by those who see it listed.
#[test]
fn who_has_heard_of_the_change_finds_it_listed() {
    loom::model(|| {
        let vm = Vm::new(1);
        let told = Arc::new(AtomicBool::new(false));
        let (owner, tell) = (Arc::clone(&vm), Arc::clone(&told));
        let owner = thread::spawn(move || {
            owner.change(2, true);
            tell.store(true, loom::sync::atomic::Ordering::Release);
        });
        if told.load(Acquire) {
            assert!(vm.asks(2));
        }
        owner.join().unwrap();
    });
}

/// The second look at the state is needed.
#[test]
#[should_panic(expected = "hidden")]
fn without_the_second_look_a_change_hides_somebody() {
    loom::model(|| {
        let vm = Vm::new(1);
        let owner = Arc::clone(&vm);
        let owner = thread::spawn(move || owner.change(2, true));
        let complete = vm.state.load(Acquire) & 0xFFFF == 0;
        // The other order of the two, which a sender may as well take.
        let listed = vm.members[1].load(Acquire) || vm.members[0].load(Acquire);
        assert!(!complete || listed, "hidden");
        owner.join().unwrap();
    });
}
