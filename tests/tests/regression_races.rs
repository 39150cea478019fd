//! Races with INIT, each brought about on purpose: an inbox that lets something happen in the middle
//! of a post or of a discard. The inbox stages vectors as a posted-interrupt descriptor does.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::SeqCst;

use vlapic_core::{
    ApicPage, Inbox, LocalApic, Notify, Outcome, Profile, Receipt, Register, Slot, Trigger, Vector,
    Width,
};

/// What happens in the middle, once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Nothing,
    /// The owner carries out INIT after acceptance was decided, before the vector is staged.
    InitBeforePost,
    /// As before, and the guest enables its APIC again.
    InitAndEnableBeforePost,
    /// As before, after the vector is staged.
    InitAfterPost,
    /// Another CPU posts when INIT has just emptied the staging area.
    PostAfterDiscard,
}

struct Staging {
    staged: Mutex<Vec<Vector>>,
    meanwhile: Mutex<Meanwhile>,
    seen: Mutex<Option<Receipt>>,
}

type StagedApic = LocalApic<'static, Staging>;

thread_local! {
    static OWNER: RefCell<Option<StagedApic>> = const { RefCell::new(None) };
}

fn owner<T>(work: impl FnOnce(&mut StagedApic) -> T) -> T {
    OWNER.with(|owner| work(owner.borrow_mut().as_mut().unwrap()))
}

fn enable(apic: &mut StagedApic) {
    let _ = apic.write_mmio(0x0F0, Width::Dword, 0x1FF, 0);
}

impl Staging {
    fn take_meanwhile(&self, one_of: &[Meanwhile]) -> Meanwhile {
        let mut meanwhile = self.meanwhile.lock().unwrap();
        if one_of.contains(&meanwhile) {
            std::mem::replace(&mut meanwhile, Meanwhile::Nothing)
        } else {
            Meanwhile::Nothing
        }
    }
}

impl Inbox for Staging {
    fn post(&self, _: &ApicPage, vector: Vector, _: Trigger) -> Notify {
        use Meanwhile::{InitAfterPost, InitAndEnableBeforePost, InitBeforePost};
        match self.take_meanwhile(&[InitBeforePost, InitAndEnableBeforePost]) {
            InitBeforePost => owner(LocalApic::init),
            InitAndEnableBeforePost => owner(|apic| {
                apic.init();
                enable(apic);
            }),
            _ => {}
        }
        self.staged.lock().unwrap().push(vector);
        if self.take_meanwhile(&[InitAfterPost]) == InitAfterPost {
            owner(LocalApic::init);
        }
        Notify::Kick
    }

    fn attention(&self) -> Notify {
        Notify::Kick
    }

    fn retract(&self, _: &ApicPage, vector: Vector) -> bool {
        let mut staged = self.staged.lock().unwrap();
        let before = staged.len();
        staged.retain(|&other| other != vector);
        staged.len() < before
    }

    fn collect(&self, page: &ApicPage) {
        for vector in self.staged.lock().unwrap().drain(..) {
            page.irr().insert(vector);
        }
    }

    fn discard(&self) {
        self.staged.lock().unwrap().clear();
        if self.take_meanwhile(&[Meanwhile::PostAfterDiscard]) == Meanwhile::PostAfterDiscard {
            // The slot is leaked: its address outlives the borrow of the owner in progress.
            let slot = SLOT.with(|slot| *slot.borrow()).unwrap();
            *self.seen.lock().unwrap() = Some(slot.request(0x55, Trigger::Edge));
        }
    }
}

thread_local! {
    static SLOT: RefCell<Option<&'static Slot<'static, Staging>>> = const { RefCell::new(None) };
}

/// An enabled APIC to whom `meanwhile` will happen.
fn apic(meanwhile: Meanwhile) -> &'static Slot<'static, Staging> {
    let page: &'static ApicPage = Box::leak(Box::new(ApicPage::new()));
    let inbox = Staging {
        staged: Mutex::default(),
        meanwhile: Mutex::new(Meanwhile::Nothing),
        seen: Mutex::new(None),
    };
    let slot: &'static Slot<'static, Staging> =
        Box::leak(Box::new(Slot::new(page, 0, Profile::intel(), inbox)));
    SLOT.with(|known| *known.borrow_mut() = Some(slot));
    let mut apic = LocalApic::new(slot, true);
    enable(&mut apic);
    OWNER.with(|owner| *owner.borrow_mut() = Some(apic));
    *slot.inbox().meanwhile.lock().unwrap() = meanwhile;
    slot
}

fn irr(slot: &Slot<'_, Staging>) -> Vec<u8> {
    let _ = owner(|apic| apic.prepare(0));
    slot.page().irr().iter().map(Vector::get).collect()
}

#[test]
fn a_staged_vector_does_not_survive_init() {
    let slot = apic(Meanwhile::Nothing);
    assert_eq!(slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
    owner(LocalApic::init);
    owner(enable);
    assert_eq!(irr(slot), []);
}

#[test]
fn a_staged_vector_survives_a_transient_disable() {
    let slot = apic(Meanwhile::Nothing);
    assert_eq!(slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
    slot.page().write(Register::Svr, 0xFF);
    assert_eq!(slot.request(0x56, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(irr(slot), [0x55], "accepted before, so it shows");
    slot.page().write(Register::Svr, 0x1FF);
    assert_eq!(irr(slot), [0x55]);
}

#[test]
fn a_post_that_lands_after_init_is_taken_back() {
    let slot = apic(Meanwhile::InitBeforePost);
    assert_eq!(slot.request(0x55, Trigger::Edge).outcome, Outcome::Refused);
    assert_eq!(irr(slot), [], "the new life begins with an empty IRR");
    owner(enable);
    assert_eq!(irr(slot), []);
}

#[test]
fn a_post_that_lands_after_init_and_enable_counts() {
    let slot = apic(Meanwhile::InitAndEnableBeforePost);
    assert_eq!(slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted);
    assert_eq!(irr(slot), [0x55]);
}

#[test]
fn a_post_that_init_wiped_is_not_repeated() {
    let slot = apic(Meanwhile::InitAfterPost);
    assert_eq!(slot.request(0x55, Trigger::Edge).outcome, Outcome::Accepted, "before INIT");
    owner(enable);
    assert_eq!(irr(slot), []);
}

#[test]
fn init_refuses_before_it_discards() {
    let slot = apic(Meanwhile::PostAfterDiscard);
    owner(LocalApic::init);
    let seen = slot.inbox().seen.lock().unwrap().take().unwrap();
    assert_eq!(seen.outcome, Outcome::Refused);
    assert_eq!(irr(slot), []);
}

#[test]
fn reset_and_disable_refuse_before_they_discard() {
    for disable in [false, true] {
        let slot = apic(Meanwhile::PostAfterDiscard);
        if disable {
            let effect = owner(|apic| apic.write_msr(0x1B, 0xFEE0_0100, 0));
            assert!(effect.is_ok());
        } else {
            owner(|apic| apic.reset(true));
        }
        let seen = slot.inbox().seen.lock().unwrap().take().unwrap();
        assert_eq!(seen.outcome, Outcome::Refused, "disable: {disable}");
        assert_eq!(irr(slot), []);
    }
}

#[test]
fn an_upcall_is_neither_lost_nor_doubled_by_init() {
    use Meanwhile::{InitAfterPost, InitAndEnableBeforePost, InitBeforePost};
    for meanwhile in [InitBeforePost, InitAfterPost, InitAndEnableBeforePost] {
        let slot = apic(Meanwhile::Nothing);
        let pending: &'static AtomicU8 = Box::leak(Box::new(AtomicU8::new(0)));
        owner(|apic| apic.register_upcall(0xF3, pending)).unwrap();
        *slot.inbox().meanwhile.lock().unwrap() = meanwhile;
        let _ = slot.notify_upcall(pending);
        if meanwhile != InitAndEnableBeforePost {
            assert_eq!(irr(slot), [], "{meanwhile:?}");
            owner(enable);
        }
        assert_eq!(irr(slot), [0xF3], "{meanwhile:?}");
        assert_eq!(owner(|apic| apic.acknowledge()), 0xF3);
        pending.store(0, SeqCst);
        let _ = owner(|apic| apic.end_of_interrupt());
        assert_eq!(irr(slot), [], "{meanwhile:?}");
    }
}
