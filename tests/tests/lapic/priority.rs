//! TPR, PPR, nomination, acknowledgement, EOI, TMR.

use vlapic_core::{Effect, Outcome, Profile, Register, Trigger, Vector};
use vlapic_tests::plain::Plain;

fn request(plain: &Plain, vector: u8, trigger: Trigger) {
    assert_eq!(plain.slot.request(vector, trigger).outcome, Outcome::Accepted);
}

/// PPR as SDM Vol. 3A 10.8.3.1 has it, in nibbles.
fn ppr(tpr: u8, in_service: u8) -> u8 {
    let (task, service) = (tpr >> 4, in_service >> 4);
    let class = task.max(service);
    let sub = if task < service { 0 } else { tpr & 0xF };
    class << 4 | sub
}

#[test]
fn ppr_of_every_pair() {
    let plain = Plain::enabled(Profile::intel());
    let page = plain.slot.page();
    for vector in std::iter::once(None).chain((16..=255).map(Vector::new)) {
        if let Some(vector) = vector {
            page.isr().insert(vector);
        }
        for tpr in 0..=255u8 {
            page.write(Register::Tpr, u32::from(tpr));
            let expected = ppr(tpr, vector.map_or(0, Vector::get));
            assert_eq!(plain.apic.processor_priority(), expected, "{tpr:#x} {vector:?}");
        }
        page.isr().clear();
    }
}

#[test]
fn the_class_must_be_strictly_higher() {
    for vector in 16..=255u8 {
        let mut plain = Plain::enabled(Profile::intel());
        request(&plain, vector, Trigger::Edge);
        for tpr in [0, 0x0F, 0x10, 0x2F, 0x80, 0xF0, 0xFF, vector, vector & 0xF0, vector | 0xF] {
            plain.set(Register::Tpr, u32::from(tpr));
            let expected = (vector >> 4 > tpr >> 4).then_some(vector);
            assert_eq!(plain.apic.nominate().map(Vector::get), expected, "{vector:#x} {tpr:#x}");
        }
    }
}

#[test]
fn nominating_consumes_nothing() {
    let mut plain = Plain::enabled(Profile::intel());
    request(&plain, 0x51, Trigger::Edge);
    let first = plain.apic.nominate();
    assert_eq!(first, plain.apic.nominate());
    assert_eq!((plain.irr(), plain.isr()), (vec![0x51], vec![]));
    assert!(plain.apic.commit(first.unwrap()));
    assert_eq!((plain.irr(), plain.isr()), (vec![], vec![0x51]));
    assert!(!plain.apic.commit(first.unwrap()), "there is only one");
    assert_eq!(plain.slot.page().read(Register::Ppr), 0x50);
}

#[test]
fn an_interrupt_that_vanished_is_spurious() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::Svr, 0x1EF);
    request(&plain, 0x51, Trigger::Edge);
    plain.set(Register::Tpr, 0x50);
    assert_eq!(plain.apic.acknowledge(), 0xEF);
    assert_eq!((plain.irr(), plain.isr()), (vec![0x51], vec![]));
    plain.set(Register::Tpr, 0x4F);
    assert_eq!(plain.apic.acknowledge(), 0x51);
}

#[test]
fn nesting_and_eoi() {
    let mut plain = Plain::enabled(Profile::intel());
    for vector in [0x31, 0x35, 0x82, 0x10, 0xFF] {
        request(&plain, vector, Trigger::Edge);
    }
    assert_eq!(plain.apic.acknowledge(), 0xFF);
    assert_eq!(plain.apic.nominate(), None, "nothing above class F");
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0x82);
    assert_eq!(plain.apic.nominate(), None);
    request(&plain, 0x91, Trigger::Edge);
    assert_eq!(plain.apic.acknowledge(), 0x91);
    assert_eq!(plain.isr(), [0x91, 0x82]);
    plain.set(Register::Eoi, 0xDEAD);
    assert_eq!(plain.isr(), [0x82], "the highest ends, whatever is written");
    assert_eq!(plain.load(0x0B0), 0);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0x35);
    plain.set(Register::Eoi, 0);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0x31);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0x10, "16 is a legal vector");
    plain.set(Register::Eoi, 0);
    assert_eq!((plain.irr(), plain.isr()), (vec![], vec![]));
    assert_eq!(plain.read(Register::Ppr), 0);
}

#[test]
fn eoi_is_broadcast_for_levels_and_can_be_suppressed() {
    let broadcast = |plain: &mut Plain, vector, trigger| {
        request(plain, vector, trigger);
        assert_eq!(plain.apic.acknowledge(), vector);
        plain.write(Register::Eoi, 0)
    };
    let mut plain = Plain::enabled(Profile::intel());
    let ended = Effect::EndOfInterrupt(Vector::new(0x61).unwrap());
    assert_eq!(broadcast(&mut plain, 0x61, Trigger::Edge), Effect::None);
    assert_eq!(broadcast(&mut plain, 0x61, Trigger::Level), ended);
    assert_eq!(plain.slot.page().tmr().iter().count(), 1, "EOI leaves TMR alone");
    assert_eq!(broadcast(&mut plain, 0x61, Trigger::Edge), Effect::None, "acceptance clears it");
    plain.set(Register::Svr, 0x11FF);
    assert_eq!(broadcast(&mut plain, 0x61, Trigger::Level), Effect::None);
    // Without the feature the bit is neither kept nor, should it stand in the page, obeyed.
    let mut plain = Plain::enabled(Profile::amd());
    plain.set(Register::Svr, 0x11FF);
    assert_eq!(plain.read(Register::Svr), 0x1FF);
    plain.slot.page().write(Register::Svr, 0x11FF);
    assert_eq!(broadcast(&mut plain, 0x61, Trigger::Level), ended);
}

#[test]
fn eoi_of_nothing_is_nothing() {
    let mut plain = Plain::enabled(Profile::intel());
    request(&plain, 0x61, Trigger::Level);
    assert_eq!(plain.write(Register::Eoi, 0), Effect::None);
    assert_eq!(plain.irr(), [0x61]);
}

#[test]
fn requests_collapse_in_irr_and_queue_behind_isr() {
    let mut plain = Plain::enabled(Profile::intel());
    request(&plain, 0x61, Trigger::Edge);
    request(&plain, 0x61, Trigger::Edge);
    assert_eq!(plain.apic.acknowledge(), 0x61);
    request(&plain, 0x61, Trigger::Edge);
    assert_eq!(plain.apic.nominate(), None, "its own class is in service");
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0x61);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.nominate(), None, "two, not three");
}

#[test]
fn arbitration_priority_is_amds_to_show() {
    let mut plain = Plain::enabled(Profile::amd());
    plain.set(Register::Tpr, 0x35);
    assert_eq!(plain.read(Register::Apr), 0x35);
    request(&plain, 0x52, Trigger::Edge);
    assert_eq!(plain.read(Register::Apr), 0x50);
    plain.set(Register::Tpr, 0x57);
    assert_eq!(plain.read(Register::Apr), 0x57);
    plain.enter_x2apic();
    assert_eq!(plain.rdmsr(0x809), Ok(0x57));
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::Tpr, 0x35);
    assert_eq!(plain.read(Register::Apr), 0);
}

#[test]
fn amds_interrupt_enable_registers() {
    let mut plain = Plain::enabled(Profile::amd());
    request(&plain, 0x61, Trigger::Edge);
    request(&plain, 0x41, Trigger::Edge);
    let _ = plain.store(0x4B0, !(1 << 1));
    assert_eq!(plain.apic.nominate().map(Vector::get), Some(0x61), "not switched on");
    let _ = plain.store(0x410, 1);
    assert_eq!(plain.apic.nominate().map(Vector::get), Some(0x41));
    // What an Intel page holds there means nothing.
    let plain = Plain::enabled(Profile::intel());
    request(&plain, 0x61, Trigger::Edge);
    plain.slot.page().store(0x410, 7);
    assert_eq!(plain.apic.nominate().map(Vector::get), Some(0x61));
}

#[test]
fn amds_specific_eoi() {
    let mut plain = Plain::enabled(Profile::amd());
    request(&plain, 0x41, Trigger::Level);
    assert_eq!(plain.apic.acknowledge(), 0x41);
    request(&plain, 0x61, Trigger::Edge);
    assert_eq!(plain.apic.acknowledge(), 0x61);
    assert_eq!(plain.store(0x420, 0x41), Effect::None);
    assert_eq!(plain.isr(), [0x61, 0x41], "not switched on");
    let _ = plain.store(0x410, 2);
    let ended = Effect::EndOfInterrupt(Vector::new(0x41).unwrap());
    assert_eq!(plain.store(0x420, 0x41), ended);
    assert_eq!(plain.isr(), [0x61]);
    assert_eq!(plain.store(0x420, 0x41), Effect::None, "not in service any more");
    assert_eq!(plain.store(0x420, 3), Effect::None);
}

#[test]
fn vectors_below_16_in_a_scribbled_page_do_not_exist() {
    let mut plain = Plain::enabled(Profile::intel());
    for offset in [0x100, 0x180, 0x200] {
        plain.slot.page().store(offset, 0xFFFF);
    }
    assert_eq!(plain.apic.nominate(), None);
    assert_eq!(plain.apic.acknowledge(), 0xFF);
    assert_eq!(plain.write(Register::Eoi, 0), Effect::None);
    assert_eq!(plain.apic.processor_priority(), 0);
    assert_eq!((plain.load(0x100), plain.load(0x180), plain.load(0x200)), (0, 0, 0));
}
