//! A slot that nobody owns yet: as after RESET, and what is sent to it is not lost.

use std::sync::atomic::AtomicU8;

use vlapic_core::{
    Address, ApicPage, Delivery, Destination, DirectInbox, Event, LocalApic, Message, Mode, Notify,
    Outcome, Profile, Register, Slot, Trigger, Vm,
};

type Plain<'p> = Slot<'p, DirectInbox>;

fn outcome(slot: &Plain<'_>, delivery: Delivery) -> (Outcome, Notify) {
    let receipt = slot.receive(delivery);
    (receipt.outcome, receipt.notify)
}

const TAKEN: (Outcome, Notify) = (Outcome::Accepted, Notify::Kick);

#[test]
fn it_is_as_reset_leaves_it() {
    let page = ApicPage::new();
    // Left by a VM that is gone.
    page.words().iter().for_each(|word| word.store(!0, std::sync::atomic::Ordering::Relaxed));
    let slot = Slot::new(&page, 5, Profile::intel(), DirectInbox);
    assert_eq!((slot.mode(), slot.accepts(), slot.online()), (Mode::XApic, false, false));
    let unowned =
        page.words().each_ref().map(|word| word.load(std::sync::atomic::Ordering::Relaxed));
    let mut apic = LocalApic::new(&slot, false);
    let owned = page.words().each_ref().map(|word| word.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(unowned, owned, "the first owner changes nothing");
    apic.reset(false);
    let reset = page.words().each_ref().map(|word| word.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(owned, reset);
    assert_eq!(page.read(Register::Id), 5 << 24);
}

#[test]
fn init_and_sipi_wait_for_the_owner() {
    let pages = [const { ApicPage::new() }; 2];
    let slots = [0, 1].map(|id| Slot::new(&pages[id], id as u32, Profile::intel(), DirectInbox));
    let vm = Vm::new(&slots).expect("IDs ascend");
    let destination = Destination::Physical(Address::Narrow(1));
    for delivery in [Delivery::Init, Delivery::Startup { page: 0x9A }, Delivery::Nmi] {
        let told: Vec<_> = vm.send(&Message::new(delivery, destination), Some(0)).collect();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].0, told[0].1.outcome, told[0].1.notify), (1, TAKEN.0, TAKEN.1));
    }
    let fixed = Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge };
    assert_eq!(outcome(&slots[1], fixed), (Outcome::Refused, Notify::None), "as after RESET");

    let mut apic = LocalApic::new(&slots[1], false);
    let events: Vec<_> = std::iter::from_fn(|| apic.take_event()).collect();
    let expected = [Event::Init { waits: true }, Event::Startup { page: 0x9A }, Event::Nmi];
    assert_eq!(events, expected);
    assert!(slots[1].online());
}

#[test]
fn a_bootstrap_processor_waits_for_no_sipi() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
    assert_eq!(
        outcome(&slot, Delivery::Startup { page: 1 }),
        TAKEN,
        "nobody says that it is the BSP"
    );
    assert_eq!(outcome(&slot, Delivery::Nmi), TAKEN);
    let mut apic = LocalApic::new(&slot, true);
    assert!(slot.online() && slot.base().bootstrap());
    assert_eq!(apic.take_event(), Some(Event::Nmi));
    assert_eq!(apic.take_event(), None);
}

#[test]
fn an_upcall_registered_before_is_kept() {
    let (page, pending) = (ApicPage::new(), AtomicU8::new(0));
    let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
    assert_eq!(slot.register_upcall(0xF3, &pending), Ok(Notify::None));
    assert_eq!(slot.notify_upcall(&pending), Notify::Kick);
    let mut apic = LocalApic::new(&slot, true);
    page.write(Register::Svr, 0x1FF);
    let _ = apic.prepare(0);
    assert!(page.irr().is_empty(), "it does not know the byte");
    apic.bind_upcall(&pending);
    let _ = apic.prepare(0);
    assert_eq!(page.irr().highest().map(vlapic_core::Vector::get), Some(0xF3));
}

/// A second owner is a new machine: nothing of the first one's life is left.
#[test]
fn a_second_owner_begins_with_reset() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 1, Profile::intel(), DirectInbox);
    let mut first = LocalApic::new(&slot, false);
    assert_eq!(outcome(&slot, Delivery::Startup { page: 8 }), TAKEN);
    assert_eq!(first.take_event(), Some(Event::Startup { page: 8 }));
    page.write(Register::Svr, 0x1FF);
    assert_eq!(outcome(&slot, Delivery::Init), TAKEN);
    let mut second = LocalApic::new(&slot, false);
    assert_eq!(second.take_event(), None);
    assert!(!slot.accepts() && !slot.online());
}
