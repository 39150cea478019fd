//! The bitmap is looked at only where it may have to change: each such place.

use vlapic_core::{ApicPage, Inbox, Lvt, LvtEntry, Notify, Pin, Register, Trigger, Vector};
use vlapic_hal::wrap::{Fault, FaultInjector, When};
use vlapic_hal::{Vmcs, VmcsError};

use crate::descriptor::PostedDescriptor;
use crate::exit::{Exit, reason};
use crate::field::EOI_EXIT_BITMAP;
use crate::machines::full;
use crate::msr_bitmap::MsrBitmap;
use crate::negotiate::Wanted;
use crate::rig::{Fields, INPUT, addresses, fresh, slot};
use crate::vcpu::Vcpu;

fn vector(raw: u8) -> Vector {
    Vector::new(raw).unwrap()
}

fn configure<'s>(vcpu: &mut Vcpu<'s>, vmcs: &mut Fields, bitmap: &'s MsrBitmap) {
    let _ = vcpu.configure(vmcs, &full(), Wanted::ALL, &addresses(bitmap)).unwrap();
}

fn enter(vcpu: &mut Vcpu<'_>, vmcs: &mut Fields) {
    let _ = vcpu.before_entry(vmcs, INPUT).unwrap();
    assert!(!vcpu.apic().slot().inbox().eoi_exits_due(), "one look is enough");
}

fn loaded(vmcs: &Fields, raw: u8) -> bool {
    vmcs.read(EOI_EXIT_BITMAP[usize::from(raw >> 6)]).unwrap() >> (raw & 63) & 1 != 0
}

/// A level at LINT0 that the APIC has accepted; an edge of its vector, since, has cleared TMR.
fn wait_for_eoi(vcpu: &mut Vcpu<'_>, raw: u8) {
    let slot = vcpu.apic().slot();
    slot.page().write(Register::Svr, 0x1FF);
    slot.page().write(Register::Lvt(LvtEntry::Lint0), 0x8000 | u32::from(raw));
    let _ = slot.set_lint(Pin::Lint0, true);
    let _ = vcpu.apic_mut().prepare(0);
    let _ = slot.request(raw, Trigger::Edge);
    assert!(slot.lvt(LvtEntry::Lint0).bits() & Lvt::REMOTE_IRR != 0);
    assert!(!slot.page().tmr().contains(vector(raw)));
}

#[test]
fn a_new_configuration_loads_routes_and_pins_anew() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    slot.inbox().set_level_route(vector(0xA1), true);
    wait_for_eoi(&mut vcpu, 0x35);
    for _ in 0..3 {
        let mut vmcs = fresh();
        configure(&mut vcpu, &mut vmcs, &bitmap);
        enter(&mut vcpu, &mut vmcs);
        assert!(loaded(&vmcs, 0xA1) && loaded(&vmcs, 0x35));
    }
}

#[test]
fn what_could_not_be_written_is_written_by_the_next_entry() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    configure(&mut vcpu, &mut vmcs, &bitmap);
    enter(&mut vcpu, &mut vmcs);
    for raw in [0x21, 0x61, 0xA1, 0xE1] {
        slot.inbox().set_level_route(vector(raw), true);
    }
    for _ in 0..4 {
        let error = VmcsError::Instruction(26);
        let fault = (When::Nth(2), Fault::WriteVmcs { field: None, error });
        let mut faulty = FaultInjector::new(&mut vmcs, [fault]);
        // One word each time; the last call has nothing to fail at.
        let _ = vcpu.before_entry(&mut faulty, INPUT);
    }
    assert!([0x21, 0x61, 0xA1, 0xE1].iter().all(|&raw| loaded(&vmcs, raw)));
}

/// The edge came from another CPU after the pin's level was staged and before the owner took that.
#[test]
fn a_staged_pin_has_its_bit_though_an_edge_came_in_between() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    wait_for_eoi(&mut vcpu, 0x61);
    configure(&mut vcpu, &mut vmcs, &bitmap);
    // As it stood before there was a pin.
    slot.inbox().eoi_exits_reviewed();
    enter(&mut vcpu, &mut vmcs);
    assert!(!loaded(&vmcs, 0x61));
    assert_eq!(slot.inbox().post(&page, vector(0x61), Trigger::Level), Notify::Kick);
    enter(&mut vcpu, &mut vmcs);
    assert!(page.irr().contains(vector(0x61)) && loaded(&vmcs, 0x61));
}

/// A page filled by somebody who did not say so. The other half of the word is loaded already.
#[test]
fn a_level_in_irr_or_isr_has_its_bit() {
    for raw in 16..=255 {
        for in_service in [false, true] {
            let (page, descriptor, bitmap) =
                (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
            let slot = slot(&page, &descriptor);
            let mut vcpu = Vcpu::new(&slot, true);
            let mut vmcs = fresh();
            configure(&mut vcpu, &mut vmcs, &bitmap);
            if let Some(other) = Vector::new(raw ^ 0x20) {
                slot.inbox().set_level_route(other, true);
            }
            enter(&mut vcpu, &mut vmcs);
            let holds = if in_service { page.isr() } else { page.irr() };
            holds.insert(vector(raw));
            enter(&mut vcpu, &mut vmcs);
            assert!(!loaded(&vmcs, raw), "{raw:#x}: an edge");
            page.tmr().insert(vector(raw));
            enter(&mut vcpu, &mut vmcs);
            assert!(loaded(&vmcs, raw), "{raw:#x}");
        }
    }
}

/// Its EOI does not exit: the bit is gone before it is taken.
#[test]
fn an_edge_that_waits_drops_the_bit_of_its_past() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    configure(&mut vcpu, &mut vmcs, &bitmap);
    page.write(Register::Svr, 0x1FF);
    for (trigger, exits) in [(Trigger::Level, true), (Trigger::Edge, false)] {
        let _ = slot.request(0x61, trigger);
        enter(&mut vcpu, &mut vmcs);
        assert_eq!(loaded(&vmcs, 0x61), exits, "{trigger:?}");
        page.irr().remove(vector(0x61));
        page.isr().insert(vector(0x61));
        enter(&mut vcpu, &mut vmcs);
        assert_eq!(loaded(&vmcs, 0x61), exits, "{trigger:?}");
        page.isr().remove(vector(0x61));
    }
}

/// And so does an EOI that came before any entry saw the vector.
#[test]
fn the_eoi_of_an_edge_drops_the_bit() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    configure(&mut vcpu, &mut vmcs, &bitmap);
    page.tmr().insert(vector(0x61));
    enter(&mut vcpu, &mut vmcs);
    for (tmr, kept) in [(true, true), (false, false)] {
        if !tmr {
            page.tmr().remove(vector(0x61));
        }
        let _ = vcpu.after_exit(Exit { reason: reason::VIRTUALIZED_EOI, qualification: 0x61 }, 0);
        enter(&mut vcpu, &mut vmcs);
        assert_eq!(loaded(&vmcs, 0x61), kept);
        // And so a poster stages the vector again.
        let notify = slot.inbox().post(&page, vector(0x61), Trigger::Level);
        assert_eq!(notify == Notify::Kick, !kept);
        assert!(slot.inbox().retract(&page, vector(0x61)));
    }
}

#[test]
fn init_drops_the_bits_of_its_past() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    configure(&mut vcpu, &mut vmcs, &bitmap);
    page.tmr().insert(vector(0x61));
    enter(&mut vcpu, &mut vmcs);
    assert!(loaded(&vmcs, 0x61));
    vcpu.apic_mut().init();
    enter(&mut vcpu, &mut vmcs);
    assert!(!loaded(&vmcs, 0x61));
}
