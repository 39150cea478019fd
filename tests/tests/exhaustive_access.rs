//! Every offset in every width, and every MSR with walking bits, in every mode, against the
//! manuals' tables.

use vlapic_core::{Fault, IA32_APIC_BASE, Profile, Vendor, Width};
use vlapic_tests::manual::registers::{Access, Row, find};
use vlapic_tests::plain::Plain;

const PROFILES: [Profile; 2] = [Profile::intel(), Profile::amd()];
const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
const ESR: u16 = 0x280;

fn image(plain: &Plain) -> Vec<u32> {
    (0..0x1000).step_by(4).map(|offset| plain.slot.page().load(offset)).collect()
}

fn access(row: Option<Row>, x2apic: bool) -> Access {
    row.map_or(Access::No, |row| row.access(x2apic))
}

/// What a write of `value` leaves in a register that is read and written.
fn stored(offset: u16, row: Row, value: u32) -> u32 {
    // The low 28 bits of DFR are ones.
    value & row.keeps | if offset == 0x0E0 { 0x0FFF_FFFF } else { 0 }
}

#[test]
fn every_offset_in_every_width() {
    for profile in PROFILES {
        for slot in (0..0x1000u16).step_by(16) {
            let row = find(slot, profile.vendor());
            let access = access(row, false);
            let mut plain = Plain::enabled(profile);
            for within in 0..16u16 {
                for width in WIDTHS {
                    let offset = slot + within;
                    // Aligned parts of the register's own four bytes; the rest of a slot is nothing.
                    let answered = within + width.bytes() <= 4;
                    let illegal = if answered && access == Access::No { 0x80 } else { 0 };
                    let before = image(&plain);
                    let value = plain.apic.read_mmio(offset, width, 0);
                    assert!(image(&plain) == before, "a read of {offset:#x} changes nothing");
                    assert_eq!(plain.errors(), illegal, "read of {offset:#x} {width:?}");
                    if !answered || matches!(access, Access::No | Access::Wo) {
                        assert_eq!(value, 0, "read of {offset:#x} {width:?}");
                    }
                    if (within, width) != (0, Width::Dword) {
                        let before = image(&plain);
                        let _ = plain.apic.write_mmio(offset, width, u64::MAX, 0);
                        assert!(image(&plain) == before, "write to {offset:#x} {width:?}");
                        assert_eq!(plain.errors(), 0, "write to {offset:#x} {width:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_register_in_memory_with_every_bit() {
    for profile in PROFILES {
        for offset in (0..0x1000u16).step_by(16) {
            let row = find(offset, profile.vendor());
            let access = access(row, false);
            let mut plain = Plain::enabled(profile);
            for value in (0..32).map(|bit| 1 << bit).chain([0, u32::MAX]) {
                if access == Access::Rw {
                    plain = Plain::enabled(profile);
                }
                let before = image(&plain);
                let _ = plain.store(offset, value);
                match (access, row) {
                    (Access::Rw, Some(row)) if offset != ESR => {
                        let expected = stored(offset, row, value);
                        assert_eq!(plain.load(offset), expected, "{value:#x} to {offset:#x}");
                    }
                    _ => assert!(image(&plain) == before, "{value:#x} to {offset:#x}"),
                }
                if offset != ESR && offset != 0x300 {
                    let illegal = if access == Access::No { 0x80 } else { 0 };
                    assert_eq!(plain.errors(), illegal, "{value:#x} to {offset:#x}");
                }
            }
        }
    }
}

#[test]
fn every_msr_with_every_bit() {
    for profile in PROFILES {
        for msr in 0x800..=0x8FFu32 {
            let offset = ((msr - 0x800) << 4) as u16;
            let row = find(offset, profile.vendor());
            let access = access(row, true);
            let fresh = || {
                let mut plain = Plain::x2apic(profile, 1);
                plain.enable();
                plain
            };
            let mut plain = fresh();
            for value in (0..64).map(|bit| 1 << bit).chain([0, u64::MAX]) {
                let readable = matches!(access, Access::Ro | Access::Rw);
                assert_eq!(plain.rdmsr(msr).is_ok(), readable, "read of {msr:#x}");
                let before = image(&plain);
                let result = plain.wrmsr(msr, value);
                let high = if offset == 0x300 { 0 } else { 0xFFFF_FFFF_0000_0000 };
                let faults = match (access, row) {
                    (Access::Rw | Access::Wo, Some(row)) => {
                        value & (high | u64::from(row.faults)) != 0
                    }
                    _ => true,
                };
                assert_eq!(result.is_err(), faults, "{value:#x} to {msr:#x}");
                if faults {
                    assert!(image(&plain) == before, "{value:#x} to {msr:#x}");
                } else if let (Access::Rw, Some(row)) = (access, row)
                    && offset != ESR
                {
                    let high = if offset == 0x300 { value >> 32 << 32 } else { 0 };
                    let expected = high | u64::from(stored(offset, row, value as u32));
                    assert_eq!(plain.rdmsr(msr), Ok(expected), "{value:#x} to {msr:#x}");
                }
                assert_eq!(plain.errors() & 0x80, 0, "no ESR bit 7 from an MSR");
                if !faults {
                    plain = fresh();
                }
            }
        }
    }
}

#[test]
fn no_msr_outside_x2apic_mode_and_no_window_outside_xapic_mode() {
    for profile in PROFILES {
        let mut disabled = Plain::enabled(profile);
        disabled.set_msr(IA32_APIC_BASE, 0xFEE0_0000);
        for mut plain in [Plain::enabled(profile), disabled] {
            let before = image(&plain);
            for msr in 0x800..=0x8FF {
                assert_eq!(plain.rdmsr(msr), Err(Fault::GeneralProtection), "{msr:#x}");
                for value in (0..64).map(|bit| 1 << bit).chain([0]) {
                    assert_eq!(plain.wrmsr(msr, value), Err(Fault::GeneralProtection), "{msr:#x}");
                }
            }
            assert!(image(&plain) == before);
        }
        let mut disabled = Plain::enabled(profile);
        disabled.set_msr(IA32_APIC_BASE, 0xFEE0_0000);
        for mut plain in [Plain::x2apic(profile, 1), disabled] {
            let before = image(&plain);
            for offset in 0..0x1000 {
                for width in WIDTHS {
                    assert_eq!(plain.apic.read_mmio(offset, width, 0), width.mask());
                    let _ = plain.apic.write_mmio(offset, width, u64::MAX, 0);
                }
            }
            assert!(image(&plain) == before);
            assert_eq!(profile.vendor() == Vendor::Amd, profile.extended_space());
        }
    }
}
