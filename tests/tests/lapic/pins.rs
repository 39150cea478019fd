//! LINT0 and LINT1.

use vlapic_core::{Effect, Event, LvtEntry, Notify, Pin, Profile, Register, Vector};
use vlapic_tests::plain::Plain;

fn apic(lint0: u32, lint1: u32) -> Plain {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Lint0, lint0);
    let _ = plain.write_lvt(LvtEntry::Lint1, lint1);
    plain
}

fn drive(plain: &mut Plain, pin: Pin, asserted: bool) {
    let _ = plain.slot.set_lint(pin, asserted);
    let _ = plain.apic.prepare(0);
}

#[test]
fn an_edge_interrupts_once() {
    for (pin, lint0, lint1) in [(Pin::Lint0, 0x41, 0x1_0000), (Pin::Lint1, 0x1_0000, 0x41)] {
        let mut plain = apic(lint0, lint1);
        assert_eq!(plain.slot.set_lint(pin, true), Notify::Kick);
        assert_eq!(plain.slot.set_lint(pin, true), Notify::None, "no change");
        let _ = plain.apic.prepare(0);
        assert_eq!(plain.apic.acknowledge(), 0x41);
        let _ = plain.apic.prepare(0);
        assert_eq!(plain.irr(), []);
        drive(&mut plain, pin, false);
        assert_eq!(plain.irr(), []);
        drive(&mut plain, pin, true);
        assert_eq!(plain.irr(), [0x41]);
    }
}

#[test]
fn a_pulse_between_two_looks_is_an_edge() {
    let mut plain = apic(0x41, 0x1_0000);
    let _ = plain.slot.set_lint(Pin::Lint0, true);
    let _ = plain.slot.set_lint(Pin::Lint0, false);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x41]);
}

#[test]
fn a_masked_edge_is_dropped() {
    let mut plain = apic(0x1_0041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x41);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
}

#[test]
fn a_level_interrupts_until_it_falls() {
    let mut plain = apic(0x8041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    let lint0 = Register::Lvt(LvtEntry::Lint0);
    assert_eq!(plain.read(lint0), 0xC041, "remote IRR");
    assert_eq!(plain.apic.acknowledge(), 0x41);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [], "not again before its EOI");
    let ended = Effect::EndOfInterrupt(Vector::new(0x41).unwrap());
    assert_eq!(plain.write(Register::Eoi, 0), ended);
    assert_eq!(plain.read(lint0), 0x8041);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.apic.acknowledge(), 0x41, "still asserted");
    let _ = plain.slot.set_lint(Pin::Lint0, false);
    plain.set(Register::Eoi, 0);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
}

#[test]
fn a_masked_level_waits_for_the_mask() {
    let mut plain = apic(0x1_8041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    assert_eq!(plain.irr(), []);
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8041);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x41]);
}

#[test]
fn lint1_has_no_level() {
    let mut plain = apic(0x1_0000, 0x8041);
    drive(&mut plain, Pin::Lint1, true);
    assert_eq!(plain.apic.acknowledge(), 0x41);
    assert_eq!(plain.write(Register::Eoi, 0), Effect::None, "accepted as an edge");
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
}

#[test]
fn remote_irr_cannot_be_written_and_survives_being_overwritten() {
    let mut plain = apic(0x8041, 0x1_0000);
    let lint0 = Register::Lvt(LvtEntry::Lint0);
    plain.set(lint0, 0xD041);
    assert_eq!(plain.read(lint0), 0x8041, "bits 12 and 14 are read-only");
    drive(&mut plain, Pin::Lint0, true);
    plain.set(lint0, 0x8041);
    assert_eq!(plain.read(lint0), 0xC041);
    // A store that nobody is told of hides the bit in the page, and changes nothing else.
    plain.slot.page().write(lint0, 0x8041);
    assert_eq!(plain.read(lint0), 0xC041);
    let _ = plain.apic.acknowledge();
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), []);
}

#[test]
fn an_edge_of_the_same_vector_does_not_wedge_a_level_pin() {
    let mut plain = apic(0x8041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    assert_eq!(plain.apic.acknowledge(), 0x41);
    let _ = plain.store(0x300, 0x4_0041);
    assert_eq!(plain.write(Register::Eoi, 0), Effect::None, "the edge took the TMR bit");
    assert_eq!(plain.read(Register::Lvt(LvtEntry::Lint0)), 0x8041);
    let _ = plain.apic.acknowledge();
    plain.set(Register::Eoi, 0);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x41], "still asserted");
}

#[test]
fn turning_the_entry_to_edge_frees_remote_irr() {
    let mut plain = apic(0x8041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    let _ = plain.apic.acknowledge();
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8042);
    plain.set(Register::Eoi, 0);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [], "the EOI was for another vector");
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x42);
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8042);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x42]);
}

#[test]
fn turning_the_apic_off_frees_remote_irr() {
    let mut plain = apic(0x8041, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    plain.set_msr(0x1B, 0xFEE0_0100);
    plain.set_msr(0x1B, 0xFEE0_0900);
    plain.enable();
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x8042);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0x42]);
}

#[test]
fn virtual_wire() {
    let mut plain = apic(0x700, 0x400);
    assert!(plain.apic.passes_external_interrupts());
    assert!(!plain.apic.external_interrupt_pending());
    drive(&mut plain, Pin::Lint0, true);
    assert!(plain.apic.external_interrupt_pending());
    assert_eq!(plain.irr(), [], "the 8259 has the vector");
    drive(&mut plain, Pin::Lint0, false);
    assert!(!plain.apic.external_interrupt_pending());
    drive(&mut plain, Pin::Lint1, true);
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert_eq!(plain.apic.take_event(), None);
    drive(&mut plain, Pin::Lint0, true);
    let _ = plain.write_lvt(LvtEntry::Lint0, 0x1_0700);
    assert!(!plain.apic.external_interrupt_pending(), "masked");
}

#[test]
fn other_deliveries() {
    let mut plain = apic(0x200, 0x500);
    drive(&mut plain, Pin::Lint0, true);
    assert_eq!(plain.apic.take_event(), Some(Event::Smi));
    drive(&mut plain, Pin::Lint1, true);
    assert_eq!(plain.apic.take_event(), Some(Event::Init { waits: false }));
    // An NMI is an edge whatever the trigger bit says.
    let mut plain = apic(0x8400, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert_eq!(plain.apic.take_event(), None);
}

#[test]
fn without_an_apic_the_pins_are_intr_and_nmi() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set_msr(0x1B, 0xFEE0_0100);
    assert!(plain.apic.passes_external_interrupts());
    drive(&mut plain, Pin::Lint0, true);
    assert!(plain.apic.external_interrupt_pending());
    drive(&mut plain, Pin::Lint1, true);
    assert_eq!(plain.apic.take_event(), Some(Event::Nmi));
    assert_eq!(plain.irr(), []);
}

#[test]
fn a_software_disabled_apic_passes_nothing() {
    let mut plain = apic(0x700, 0x400);
    plain.set(Register::Svr, 0xFF);
    drive(&mut plain, Pin::Lint0, true);
    drive(&mut plain, Pin::Lint1, true);
    assert!(!plain.apic.passes_external_interrupts());
    assert!(!plain.apic.external_interrupt_pending());
    assert_eq!(plain.apic.take_event(), None);
}

#[test]
fn an_illegal_vector_on_a_level_pin_is_one_error() {
    let mut plain = apic(0x8003, 0x1_0000);
    drive(&mut plain, Pin::Lint0, true);
    assert_eq!(plain.errors(), 0x40);
    assert_eq!(plain.irr(), []);
}
