//! ESR, illegal vectors and the error entry.

use vlapic_core::{LvtEntry, Outcome, Profile, Register, Trigger};
use vlapic_tests::plain::Plain;

fn profiles() -> [Profile; 2] {
    [Profile::intel(), Profile::amd()]
}

#[test]
fn esr_is_a_latch() {
    for profile in profiles() {
        let mut plain = Plain::enabled(profile);
        let _ = plain.load(0x3F0);
        assert_eq!(plain.load(0x280), 0, "reading shows nothing new");
        let _ = plain.store(0x280, 0xFFFF_FFFF);
        assert_eq!(plain.load(0x280), 0x80);
        assert_eq!(plain.load(0x280), 0x80, "nor does it clear");
        let _ = plain.store(0x280, 0x55);
        assert_eq!(plain.load(0x280), 0, "a second write finds nothing new");
    }
}

#[test]
fn errors_add_up() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.load(0x000);
    let _ = plain.store(0x300, 0x4_000F);
    assert_eq!(plain.slot.request(3, Trigger::Edge).outcome, Outcome::IllegalVector);
    assert_eq!(plain.errors(), 0xE0);
    assert_eq!(plain.errors(), 0);
}

#[test]
fn illegal_vectors_never_reach_irr() {
    for profile in profiles() {
        for vector in 0..16 {
            let mut plain = Plain::enabled(profile);
            assert_eq!(plain.slot.request(vector, Trigger::Level).outcome, Outcome::IllegalVector);
            assert_eq!(plain.slot.page().load(0x200), 0);
            assert_eq!(plain.slot.page().load(0x180), 0);
            assert_eq!(plain.errors(), 0x40);
            for mode in [0u32, 1] {
                let _ = plain.store(0x300, mode << 8 | u32::from(vector));
                assert_eq!(plain.errors(), 0x20, "sent with mode {mode}");
            }
            for mode in [2u32, 4, 5, 6] {
                let _ = plain.store(0x300, mode << 8 | u32::from(vector));
                assert_eq!(plain.errors(), 0, "mode {mode} has no vector");
            }
        }
    }
}

#[test]
fn illegal_self_ipi_is_an_error_of_sending() {
    let mut plain = Plain::x2apic(Profile::intel(), 1);
    plain.enable();
    plain.set_msr(0x83F, 0x0F);
    assert_eq!(plain.errors(), 0x20);
    plain.set_msr(0x830, 0x4_000F);
    assert_eq!(plain.errors(), 0x20);
    assert_eq!(plain.irr(), []);
}

#[test]
fn the_error_entry_interrupts_once_a_latching() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Error, 0xFE);
    let _ = plain.load(0x000);
    assert_eq!(plain.apic.acknowledge(), 0xFE);
    let _ = plain.load(0x000);
    assert_eq!(plain.irr(), [], "the bit was pending already");
    let _ = plain.store(0x300, 0x0F);
    assert_eq!(plain.irr(), [0xFE], "another bit");
    assert_eq!(plain.errors(), 0xA0);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.apic.acknowledge(), 0xFE);
    plain.set(Register::Eoi, 0);
    let _ = plain.load(0x000);
    assert_eq!(plain.irr(), [0xFE], "armed again by the write to ESR");
}

#[test]
fn a_masked_error_entry_still_records() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Error, 0x1_00FE);
    let _ = plain.load(0x000);
    assert_eq!((plain.irr(), plain.errors()), (vec![], 0x80));
}

#[test]
fn amds_error_entry_has_a_message_type() {
    let mut plain = Plain::enabled(Profile::amd());
    let _ = plain.write_lvt(LvtEntry::Error, 0x4FE);
    let _ = plain.load(0x000);
    assert_eq!(plain.apic.take_event(), Some(vlapic_core::Event::Nmi));
    assert_eq!(plain.irr(), []);
}

#[test]
fn an_illegal_error_vector_does_not_recurse() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Error, 0x0F);
    let _ = plain.load(0x000);
    assert_eq!(plain.errors(), 0xC0, "the error and its own illegal vector");
    assert_eq!(plain.irr(), []);
}

#[test]
fn illegal_vectors_of_entries() {
    for entry in LvtEntry::ALL {
        let mut plain = Plain::enabled(Profile::intel());
        let _ = plain.write_lvt(entry, 0x1_000F);
        let _ = plain.slot.local_event(entry);
        assert_eq!(plain.errors(), 0, "{entry:?} masked");
        let _ = plain.write_lvt(entry, 0x0F);
        assert_eq!(plain.slot.local_event(entry).outcome, Outcome::IllegalVector);
        assert_eq!(plain.errors(), 0x40, "{entry:?}");
    }
}

#[test]
fn eoi_and_read_only_registers_are_no_errors() {
    let mut plain = Plain::enabled(Profile::intel());
    for offset in [0x020, 0x030, 0x090, 0x0A0, 0x0C0, 0x100, 0x180, 0x200, 0x390] {
        let _ = plain.store(offset, 0x1234);
    }
    let _ = plain.load(0x0B0);
    assert_eq!(plain.errors(), 0);
}
