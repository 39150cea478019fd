//! Which bits a write may carry and which it keeps.

use vlapic_core::{Fault, Profile, Register, Vendor};
use vlapic_tests::plain::Plain;

/// (MSR, reserved bits of 31:0 on Intel, on AMD), for the default profiles. Bits 63:32 are reserved
/// everywhere but in ICR.
const RESERVED: [(u32, u32, u32); 13] = [
    (0x808, 0xFFFF_FF00, 0xFFFF_FF00),
    (0x80B, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x80F, 0xFFFF_EC00, 0xFFFF_FC00),
    (0x828, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x830, 0xFFF3_2000, 0xFFF3_3000),
    (0x832, 0xFFF8_EF00, 0xFFF8_EF00),
    (0x833, 0xFFFE_E800, 0xFFFE_E800),
    (0x834, 0xFFFE_E800, 0xFFFE_E800),
    (0x835, 0xFFFE_0800, 0xFFFE_2800),
    (0x837, 0xFFFE_EF00, 0xFFFE_E800),
    (0x838, 0, 0),
    (0x83E, 0xFFFF_FFF4, 0xFFFF_FFF4),
    (0x83F, 0xFFFF_FF00, 0xFFFF_FF00),
];

#[test]
fn every_bit_of_every_msr() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (msr, intel, amd) in RESERVED {
            let low = if profile.vendor() == Vendor::Amd { amd } else { intel };
            let reserved = u64::from(low) | if msr == 0x830 { 0 } else { !0 << 32 };
            let mut plain = Plain::x2apic(profile, 1);
            plain.enable();
            for bit in 0..64 {
                let value = 1u64 << bit;
                let faults = plain.wrmsr(msr, value) == Err(Fault::GeneralProtection);
                assert_eq!(faults, reserved & value != 0, "{msr:#x} bit {bit}");
            }
            assert!(plain.wrmsr(msr, u64::from(!low)).is_ok(), "{msr:#x} all others");
        }
    }
}

#[test]
fn options_move_reserved_bits() {
    let mut plain = Plain::x2apic(Profile::intel().with_eoi_suppression(false), 1);
    assert!(plain.wrmsr(0x80F, 0x11FF).is_err());
    let mut plain = Plain::x2apic(Profile::intel().with_tsc_deadline(false), 1);
    assert!(plain.wrmsr(0x832, 0x5_0020).is_err());
    assert!(plain.wrmsr(0x832, 0x3_0020).is_ok());
    let mut plain = Plain::x2apic(Profile::intel(), 1);
    assert!(plain.wrmsr(0x82F, 0x1_0720).is_ok());
    for bit in (0..32).filter(|bit| 0xFFFE_E800u32 >> bit & 1 != 0) {
        assert!(plain.wrmsr(0x82F, 1 << bit).is_err());
    }
    let mut plain = Plain::x2apic(Profile::intel().with_cmci(false), 1);
    assert!(plain.wrmsr(0x82F, 0x1_0000).is_err());
}

/// (register offset, what reads back after all ones were written: Intel, AMD), APIC enabled.
const KEPT: [(u16, u32, u32); 17] = [
    (0x080, 0x0000_00FF, 0x0000_00FF),
    (0x0D0, 0xFF00_0000, 0xFF00_0000),
    (0x0E0, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x0F0, 0x0000_11FF, 0x0000_03FF),
    (0x280, 0, 0),
    (0x2F0, 0x0001_07FF, 0),
    (0x310, 0xFF00_0000, 0xFF00_0000),
    (0x320, 0x0007_00FF, 0x0007_00FF),
    (0x330, 0x0001_07FF, 0x0001_07FF),
    (0x340, 0x0001_07FF, 0x0001_07FF),
    (0x350, 0x0001_A7FF, 0x0001_87FF),
    (0x360, 0x0001_A7FF, 0x0001_87FF),
    (0x370, 0x0001_00FF, 0x0001_07FF),
    (0x390, 0, 0),
    (0x3E0, 0x0000_000B, 0x0000_000B),
    (0x410, 0, 0x0000_0007),
    (0x500, 0, 0x0001_07FF),
];

#[test]
fn what_registers_keep() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (offset, intel, amd) in KEPT {
            let mut plain = Plain::enabled(profile);
            let _ = plain.store(offset, u32::MAX);
            let expected = if profile.vendor() == Vendor::Amd { amd } else { intel };
            assert_eq!(plain.load(offset), expected, "{offset:#x} {:?}", profile.vendor());
        }
    }
}

#[test]
fn zeroes_are_kept_too() {
    for (offset, expected) in [(0x0E0, 0x0FFF_FFFF), (0x350, 0), (0x0F0, 0), (0x080, 0)] {
        let mut plain = Plain::enabled(Profile::intel());
        let _ = plain.store(offset, 0);
        assert_eq!(plain.load(offset), expected, "{offset:#x}");
    }
}

#[test]
fn icr_drops_delivery_status_and_reserved_bits() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.store(0x300, 0xFFFF_FBFF);
    assert_eq!(plain.load(0x300), 0x000C_CBFF);
    let mut plain = Plain::x2apic(Profile::intel(), 1);
    let _ = plain.wrmsr(0x830, 0x1234_5678_0000_1341).unwrap();
    assert_eq!(plain.rdmsr(0x830), Ok(0x1234_5678_0000_0341), "bit 12 is dropped, no fault");
}

#[test]
fn a_value_stored_by_hardware_is_put_right() {
    for profile in [Profile::intel(), Profile::amd()] {
        for (offset, intel, amd) in KEPT {
            let Some(register) = Register::at(offset) else { continue };
            if matches!(offset, 0x2F0 | 0x390 | 0x410 | 0x500) {
                continue;
            }
            let mut plain = Plain::enabled(profile);
            plain.slot.page().write(register, u32::MAX);
            let _ = plain.apic.after_write(register, 0);
            let expected = if profile.vendor() == Vendor::Amd { amd } else { intel };
            assert_eq!(plain.slot.page().read(register), expected, "{offset:#x}");
        }
    }
}

#[test]
fn hardware_cannot_change_what_software_cannot() {
    let mut plain = Plain::x2apic(Profile::intel(), 0x123);
    for register in [Register::Id, Register::Version, Register::Ldr, Register::Ppr] {
        let before = plain.rdmsr(register.msr());
        plain.slot.page().write(register, 0x5A5A_5A5A);
        let _ = plain.apic.after_write(register, 0);
        assert_eq!(plain.rdmsr(register.msr()), before, "{register:?}");
    }
}
