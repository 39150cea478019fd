//! Entry work looks once whether anything is due; each thing that may be due, alone.

use core::sync::atomic::AtomicU8;

use super::*;
use crate::{
    Address, ApicPage, Delivery, Destination, DirectInbox, Directory, LvtEntry, Profile, Vm,
};

fn slot(page: &ApicPage) -> Slot<'_, DirectInbox> {
    Slot::new(page, 1, Profile::intel(), DirectInbox)
}

/// A bootstrap processor that accepts, with nothing due.
fn quiet<'s>(slot: &'s Slot<'s, DirectInbox>) -> LocalApic<'s, DirectInbox> {
    let mut apic = LocalApic::new(slot, true);
    slot.page().write(Register::Svr, 0x1FF);
    let nothing = Prepared { deadline: None, upcall_owed: false, event: false, waits: false };
    assert_eq!(apic.prepare(0), nothing);
    assert!(apic.is_quiet(0));
    apic
}

fn vector(raw: u8) -> Vector {
    Vector::new(raw).unwrap()
}

#[test]
fn an_unseen_store_to_ldr_reaches_the_directory() {
    let (page, directory) = (ApicPage::new(), Directory::new());
    let slots = [slot(&page).with_directory(&directory)];
    let mut apic = quiet(&slots[0]);
    page.write(Register::Ldr, 4 << 24);
    let _ = apic.prepare(0);
    let vm = Vm::new(&slots).unwrap();
    let meant = |bit| vm.targets(Destination::Logical(Address::Narrow(bit)), None).count();
    assert_eq!((meant(4), meant(1)), (1, 0));
}

#[test]
fn an_unseen_software_disable_masks_the_entries() {
    let page = ApicPage::new();
    let slot = slot(&page);
    let mut apic = quiet(&slot);
    page.write(Register::Lvt(LvtEntry::Timer), 0x41);
    page.write(Register::Svr, 0xFF);
    let _ = apic.prepare(0);
    assert_eq!(page.read(Register::Lvt(LvtEntry::Timer)), 0x1_0041);
}

#[test]
fn an_accepting_apic_may_wait_for_its_sipi() {
    let page = ApicPage::new();
    let slot = slot(&page);
    let mut apic = LocalApic::new(&slot, false);
    page.write(Register::Svr, 0x1FF);
    assert!(apic.prepare(0).waits);
}

#[test]
fn each_event_is_found() {
    for event in [Delivery::Nmi, Delivery::Smi, Delivery::ExtInt, Delivery::Init] {
        let page = ApicPage::new();
        let slot = slot(&page);
        let mut apic = quiet(&slot);
        let _ = slot.receive(event);
        assert!(apic.prepare(0).event, "{event:?}");
    }
}

#[test]
fn a_pin_is_looked_at_as_long_as_it_is_asserted() {
    for (pin, entry, value) in
        [(Pin::Lint0, LvtEntry::Lint0, 0x8061), (Pin::Lint1, LvtEntry::Lint1, 0x61)]
    {
        let page = ApicPage::new();
        let slot = slot(&page);
        let mut apic = quiet(&slot);
        page.write(Register::Lvt(entry), value);
        let _ = slot.set_lint(pin, true);
        let _ = apic.prepare(0);
        assert_eq!(page.irr().highest(), Some(vector(0x61)), "{pin:?}");
    }
    // The edge of a pin that has fallen again.
    let page = ApicPage::new();
    let slot = slot(&page);
    let mut apic = quiet(&slot);
    page.write(Register::Lvt(LvtEntry::Lint1), 0x61);
    let _ = slot.set_lint(Pin::Lint1, true);
    let _ = slot.set_lint(Pin::Lint1, false);
    let _ = apic.prepare(0);
    assert_eq!(page.irr().highest(), Some(vector(0x61)));
    // A level that was masked when it rose.
    let page = ApicPage::new();
    let slot = self::slot(&page);
    let mut apic = quiet(&slot);
    let _ = slot.set_lint(Pin::Lint0, true);
    let _ = apic.prepare(0);
    assert!(page.irr().is_empty());
    page.write(Register::Lvt(LvtEntry::Lint0), 0x8061);
    let _ = apic.prepare(0);
    assert_eq!(page.irr().highest(), Some(vector(0x61)));
}

/// The mode is that of the page: a store to the entry that nobody was told of counts at once.
#[test]
fn the_deadline_is_that_of_the_mode() {
    let page = ApicPage::new();
    let slot = slot(&page);
    let mut apic = quiet(&slot);
    let entry = Register::Lvt(LvtEntry::Timer);
    page.write(entry, 0x41);
    page.write(Register::InitialCount, 100);
    let _ = apic.after_write(Register::InitialCount, 0);
    let deadline = apic.prepare(0).deadline;
    assert!(deadline.is_some() && apic.is_quiet(0));
    // TSC-deadline, with no deadline; reserved.
    for unseen in [0x4_0041, 0x6_0041] {
        page.write(entry, unseen);
        assert_eq!(apic.prepare(0).deadline, None, "{unseen:#x}");
    }
    page.write(entry, 0x41);
    assert_eq!(apic.prepare(0).deadline, deadline);
    assert_eq!(apic.prepare(1 << 40).deadline, None);
    assert_eq!(page.irr().highest(), Some(vector(0x41)));
}

#[test]
fn an_upcall_is_paid_by_either_look() {
    let looks: [fn(&mut LocalApic<'_, DirectInbox>) -> bool; 2] =
        [|apic| apic.prepare(0).upcall_owed, |apic| apic.recheck_upcall()];
    for look in looks {
        let (page, pending) = (ApicPage::new(), AtomicU8::new(0));
        let slot = slot(&page);
        let mut apic = quiet(&slot);
        apic.register_upcall(0x51, &pending).unwrap();
        assert!(!look(&mut apic), "no edge yet");
        page.write(Register::Svr, 0xFF);
        let _ = slot.notify_upcall(&pending);
        assert!(look(&mut apic), "refused");
        page.write(Register::Svr, 0x1FF);
        assert!(!look(&mut apic));
        assert_eq!(page.irr().highest(), Some(vector(0x51)));
        assert!(apic.is_quiet(0), "paid once");
    }
}
