//! What each offset and each MSR answers, in each mode, for each vendor.

use vlapic_core::{Fault, IA32_APIC_BASE, IA32_TSC_DEADLINE, Profile, Vendor, Width, is_apic_msr};
use vlapic_tests::plain::Plain;

/// Access kinds as the manuals print them.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Ro,
    Wo,
    Rw,
    Reserved,
}

use Kind::{Reserved, Ro, Rw, Wo};

/// (first offset, last offset, Intel xAPIC, Intel x2APIC, AMD xAPIC, AMD x2APIC), for profiles with
/// CMCI on Intel, without on AMD, and AMD's extended space.
const TABLE: [(u16, u16, Kind, Kind, Kind, Kind); 31] = [
    (0x020, 0x020, Ro, Ro, Ro, Ro),
    (0x030, 0x030, Ro, Ro, Ro, Ro),
    (0x080, 0x080, Rw, Rw, Rw, Rw),
    (0x090, 0x090, Ro, Reserved, Ro, Ro),
    (0x0A0, 0x0A0, Ro, Ro, Ro, Ro),
    (0x0B0, 0x0B0, Wo, Wo, Wo, Wo),
    (0x0C0, 0x0C0, Ro, Reserved, Ro, Reserved),
    (0x0D0, 0x0D0, Rw, Ro, Rw, Ro),
    (0x0E0, 0x0E0, Rw, Reserved, Rw, Reserved),
    (0x0F0, 0x0F0, Rw, Rw, Rw, Rw),
    (0x100, 0x170, Ro, Ro, Ro, Ro),
    (0x180, 0x1F0, Ro, Ro, Ro, Ro),
    (0x200, 0x270, Ro, Ro, Ro, Ro),
    (0x280, 0x280, Rw, Rw, Rw, Rw),
    (0x2F0, 0x2F0, Rw, Rw, Reserved, Reserved),
    (0x300, 0x300, Rw, Rw, Rw, Rw),
    (0x310, 0x310, Rw, Reserved, Rw, Reserved),
    (0x320, 0x320, Rw, Rw, Rw, Rw),
    (0x330, 0x330, Rw, Rw, Rw, Rw),
    (0x340, 0x340, Rw, Rw, Rw, Rw),
    (0x350, 0x360, Rw, Rw, Rw, Rw),
    (0x370, 0x370, Rw, Rw, Rw, Rw),
    (0x380, 0x380, Rw, Rw, Rw, Rw),
    (0x390, 0x390, Ro, Ro, Ro, Ro),
    (0x3E0, 0x3E0, Rw, Rw, Rw, Rw),
    (0x3F0, 0x3F0, Reserved, Wo, Reserved, Wo),
    (0x400, 0x400, Reserved, Reserved, Ro, Ro),
    (0x410, 0x410, Reserved, Reserved, Rw, Rw),
    (0x420, 0x420, Reserved, Reserved, Rw, Rw),
    (0x480, 0x4F0, Reserved, Reserved, Rw, Rw),
    (0x500, 0x530, Reserved, Reserved, Rw, Rw),
];

fn kind(offset: u16, amd: bool, x2apic: bool) -> Kind {
    let row = TABLE.iter().find(|row| (row.0..=row.1).contains(&offset));
    row.map_or(Reserved, |row| match (amd, x2apic) {
        (false, false) => row.2,
        (false, true) => row.3,
        (true, false) => row.4,
        (true, true) => row.5,
    })
}

const PROFILES: [Profile; 2] = [Profile::intel(), Profile::amd()];

fn is_amd(profile: Profile) -> bool {
    profile.vendor() == Vendor::Amd
}

fn image(plain: &Plain) -> Vec<u32> {
    (0..0x1000).step_by(4).map(|offset| plain.slot.page().load(offset)).collect()
}

#[test]
fn every_slot_in_memory() {
    for profile in PROFILES {
        for offset in (0..0x1000u16).step_by(16) {
            let kind = kind(offset, is_amd(profile), false);
            let illegal = if kind == Reserved { 0x80 } else { 0 };

            let mut plain = Plain::enabled(profile);
            let value = plain.load(offset);
            if matches!(kind, Reserved | Wo) {
                assert_eq!(value, 0, "{offset:#x}");
            } else if offset != 0x20 && offset != 0x90 {
                assert_eq!(value, plain.slot.page().load(offset), "{offset:#x}");
            }
            assert_eq!(plain.errors(), illegal, "read {offset:#x}");

            let mut plain = Plain::enabled(profile);
            let before = image(&plain);
            let _ = plain.store(offset, 0x5501_0029);
            if matches!(kind, Reserved | Ro) {
                assert!(image(&plain) == before, "{offset:#x}");
            }
            if kind == Rw && offset != 0x280 && !(0x300..0x320).contains(&offset) {
                assert!(image(&plain) != before, "{offset:#x} takes a write");
            }
            if offset != 0x280 {
                assert_eq!(plain.errors(), illegal, "write {offset:#x}");
            }
        }
    }
}

#[test]
fn every_msr_in_x2apic_mode() {
    for profile in PROFILES {
        for msr in 0x800..=0x8FFu32 {
            let kind = kind(((msr - 0x800) << 4) as u16, is_amd(profile), true);
            let mut plain = Plain::x2apic(profile, 1);
            plain.enable();
            let read = plain.rdmsr(msr);
            assert_eq!(read.is_ok(), matches!(kind, Ro | Rw), "read {msr:#x}");
            let before = image(&plain);
            let write = plain.wrmsr(msr, 0);
            assert_eq!(write.is_ok(), matches!(kind, Wo | Rw), "write {msr:#x}");
            if write.is_err() {
                assert!(image(&plain) == before);
            }
            assert_eq!(plain.errors() & 0x80, 0, "no ESR bit from an MSR access");
        }
    }
}

#[test]
fn msrs_exist_in_x2apic_mode_only() {
    for profile in PROFILES {
        let mut plain = Plain::enabled(profile);
        for disabled in [false, true] {
            if disabled {
                plain.set_msr(IA32_APIC_BASE, 0xFEE0_0000);
            }
            for msr in 0x800..=0x8FF {
                assert_eq!(plain.rdmsr(msr), Err(Fault::GeneralProtection));
                assert_eq!(plain.wrmsr(msr, 0), Err(Fault::GeneralProtection));
            }
        }
    }
}

#[test]
fn the_window_exists_in_xapic_mode_only() {
    for profile in PROFILES {
        let mut x2apic = Plain::x2apic(profile, 1);
        let mut disabled = Plain::enabled(profile);
        disabled.set_msr(IA32_APIC_BASE, 0xFEE0_0000);
        for plain in [&mut x2apic, &mut disabled] {
            let before = image(plain);
            for offset in (0..0x1000).step_by(16) {
                assert_eq!(plain.load(offset), u32::MAX);
                let _ = plain.store(offset, u32::MAX);
            }
            assert!(image(plain) == before);
        }
    }
}

#[test]
fn other_msrs_are_not_the_apics() {
    let mut plain = Plain::x2apic(Profile::intel(), 1);
    for msr in [0, 0x7FF, 0x900, 0xBFF, 0x10, u32::MAX] {
        assert!(!is_apic_msr(msr));
        assert_eq!(plain.rdmsr(msr), Err(Fault::GeneralProtection));
        assert_eq!(plain.wrmsr(msr, 0), Err(Fault::GeneralProtection));
    }
    for msr in [IA32_APIC_BASE, IA32_TSC_DEADLINE, 0x800, 0x8FF] {
        assert!(is_apic_msr(msr));
    }
    let mut old = Plain::new(Profile::intel().with_tsc_deadline(false));
    assert_eq!(old.rdmsr(IA32_TSC_DEADLINE), Err(Fault::GeneralProtection));
    assert_eq!(old.wrmsr(IA32_TSC_DEADLINE, 1), Err(Fault::GeneralProtection));
}

#[test]
fn small_reads_get_their_part_of_the_register() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.store(0x0D0, 0xA500_0000);
    let version = plain.load(0x030);
    for within in 0..16u16 {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let read = plain.apic.read_mmio(0x030 + within, width, 0);
            let expected = if within + width.bytes() <= 4 {
                u64::from(version) >> (8 * within) & width.mask()
            } else {
                0
            };
            assert_eq!(read, expected, "{width:?} at {within}");
        }
    }
    assert_eq!(plain.apic.read_mmio(0x0D3, Width::Byte, 0), 0xA5);
    assert_eq!(plain.errors(), 0);
}

#[test]
fn only_aligned_four_byte_writes_count() {
    let mut plain = Plain::enabled(Profile::intel());
    let before = image(&plain);
    for base in [0x080, 0x0B0, 0x0F0, 0x280, 0x300, 0x350, 0x3F0, 0x400] {
        for within in 0..16 {
            for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
                if within != 0 || width != Width::Dword {
                    let _ = plain.apic.write_mmio(base + within, width, 0x55, 0);
                }
            }
        }
    }
    assert!(image(&plain) == before);
    assert_eq!(plain.errors(), 0);
}
