//! IA32_APIC_BASE through WRMSR, and what a change of mode does to the registers.

use vlapic_core::{Effect, Fault, IA32_APIC_BASE, LvtEntry, Mode, Profile, Register};
use vlapic_tests::plain::Plain;

const MODES: [(Mode, u64); 3] =
    [(Mode::Disabled, 0x000), (Mode::XApic, 0x800), (Mode::X2Apic, 0xC00)];

fn in_mode(profile: Profile, mode: Mode) -> Plain {
    let mut plain = Plain::with(profile, 0x1_2345, true, vlapic_core::RefusedUpcall::Owed);
    match mode {
        Mode::Disabled => plain.set_msr(IA32_APIC_BASE, 0xFEE0_0100),
        Mode::XApic => {}
        Mode::X2Apic => plain.enter_x2apic(),
    }
    assert_eq!(plain.slot.mode(), mode);
    plain
}

#[test]
fn sixteen_transitions() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (from, _) in MODES {
            for (to, bits) in MODES {
                let mut plain = in_mode(profile, from);
                let legal = !matches!(
                    (from, to),
                    (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic)
                );
                let written = plain.wrmsr(IA32_APIC_BASE, 0xFEE0_0100 | bits);
                assert_eq!(written.is_ok(), legal, "{from:?} to {to:?}");
                assert_eq!(plain.slot.mode(), if legal { to } else { from });
                assert_eq!(plain.slot.present(), plain.slot.mode() != Mode::Disabled);
                if legal && from != to {
                    assert!(matches!(written, Ok(Effect::BaseChanged { .. })));
                }
            }
            let mut plain = in_mode(profile, from);
            let invalid = plain.wrmsr(IA32_APIC_BASE, 0xFEE0_0500);
            assert_eq!(invalid, Err(Fault::GeneralProtection), "{from:?} to EXTD without EN");
        }
    }
}

#[test]
fn a_refused_write_changes_nothing() {
    let mut plain = in_mode(Profile::intel(), Mode::X2Apic);
    let before = plain.rdmsr(IA32_APIC_BASE);
    for value in [u64::MAX, 0xFEE0_0D00 | 1, 0xFEE0_0D00 | 1 << 9, 1 << 46 | 0xFEE0_0D00] {
        assert_eq!(plain.wrmsr(IA32_APIC_BASE, value), Err(Fault::GeneralProtection));
        assert_eq!(plain.rdmsr(IA32_APIC_BASE), before);
    }
}

#[test]
fn the_window_is_where_the_base_says() {
    let mut plain = Plain::new(Profile::intel());
    assert_eq!(plain.slot.window_offset(0xFEE0_00F0), Some(0xF0));
    assert_eq!(plain.slot.window_offset(0xFEE0_1000), None);
    plain.set_msr(IA32_APIC_BASE, 0x12_3456_7900);
    assert_eq!(plain.slot.window_offset(0xFEE0_00F0), None);
    assert_eq!(plain.slot.window_offset(0x12_3456_7FFF), Some(0xFFF));
    plain.enter_x2apic();
    assert_eq!(plain.slot.window_offset(0x12_3456_7FFF), None, "no window in x2APIC mode");
}

#[test]
fn relocation() {
    let mut plain = Plain::new(Profile::intel());
    let effect = plain.wrmsr(IA32_APIC_BASE, 0x12_3456_7900).unwrap();
    let Effect::BaseChanged { to } = effect else { panic!("{effect:?}") };
    assert_eq!(to.address(), 0x12_3456_7000);
    assert_eq!(plain.slot.base(), to);
    assert_eq!(plain.wrmsr(IA32_APIC_BASE, 0x12_3456_7900), Ok(Effect::None), "no change");
}

#[test]
fn to_x2apic_mode_the_registers_stay_but_three() {
    let mut plain = Plain::with(Profile::intel(), 0x1_2345, true, Default::default());
    plain.enable();
    for (offset, value) in [(0x080, 0x30), (0x0D0, 0xFF00_0000), (0x310, 0x5500_0000)] {
        let _ = plain.store(offset, value);
    }
    let _ = plain.write_lvt(LvtEntry::Lint1, 0x400);
    let _ = plain.store(0x300, 0x0000_0333);
    plain.enter_x2apic();
    assert_eq!(plain.rdmsr(0x802), Ok(0x1_2345));
    assert_eq!(plain.rdmsr(0x80D), Ok(0x1234_0020), "LDR follows the x2APIC ID");
    assert_eq!(plain.rdmsr(0x830), Ok(0x333), "the destination is gone");
    assert_eq!(plain.rdmsr(0x808), Ok(0x30));
    assert_eq!(plain.rdmsr(0x80F), Ok(0x1FF));
    assert_eq!(plain.rdmsr(0x836), Ok(0x400));
}

#[test]
fn disabled_and_back() {
    let mut plain = in_mode(Profile::intel(), Mode::X2Apic);
    plain.enable();
    assert_eq!(
        plain.slot.request(0x55, vlapic_core::Trigger::Edge).outcome,
        vlapic_core::Outcome::Accepted
    );
    plain.set_msr(IA32_APIC_BASE, 0xFEE0_0100);
    assert!(!plain.slot.present() && !plain.slot.accepts() && !plain.slot.delivers());
    assert_eq!(plain.apic.nominate(), None);
    // CR8 goes on working.
    let _ = plain.apic.write_cr8(5, 0).unwrap();
    assert_eq!(plain.apic.read_cr8(), 5);
    plain.set_msr(IA32_APIC_BASE, 0xFEE0_0900);
    assert_eq!(plain.load(0x020), 0x4500_0000, "the xAPIC ID is as after RESET");
    assert_eq!(plain.load(0x030), Profile::intel().version());
    assert_eq!(plain.load(0x080), 0x50, "TPR is CR8");
    assert_eq!(plain.load(0x0A0), 0x50, "PPR follows");
    assert_eq!(plain.load(0x0F0), 0xFF);
    assert_eq!(plain.irr(), []);
}

#[test]
fn cr8_is_tpr() {
    for profile in [Profile::intel(), Profile::amd()] {
        let mut plain = Plain::enabled(profile);
        plain.set(Register::Tpr, 0x7B);
        assert_eq!(plain.apic.read_cr8(), 7);
        for value in 0..16 {
            let _ = plain.apic.write_cr8(value, 0).unwrap();
            assert_eq!(plain.read(Register::Tpr), (value as u32) << 4);
            assert_eq!(plain.read(Register::Ppr), (value as u32) << 4);
        }
        for bit in 4..64 {
            assert_eq!(plain.apic.write_cr8(1 << bit, 0), Err(Fault::GeneralProtection));
        }
        assert_eq!(plain.apic.read_cr8(), 15);
    }
}

#[test]
fn without_x2apic_there_is_no_way_in() {
    let mut plain = Plain::new(Profile::intel().with_x2apic(false));
    assert_eq!(plain.wrmsr(IA32_APIC_BASE, 0xFEE0_0D00), Err(Fault::GeneralProtection));
    assert_eq!(plain.slot.mode(), Mode::XApic);
}
