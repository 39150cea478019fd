//! IA32_APIC_BASE: from every mode, every pair of EN and EXTD with every walking bit.

use vlapic_core::{IA32_APIC_BASE, Profile};
use vlapic_tests::manual::base::written;
use vlapic_tests::plain::Plain;

const DEFAULT: u64 = 0xFEE0_0000;
/// Each mode and how it is reached from xAPIC mode.
const MODES: [u64; 3] = [DEFAULT, DEFAULT | 0x800, DEFAULT | 0xC00];

#[test]
fn every_transition_with_every_bit() {
    let mut faults = 0;
    for (profile, bits) in [Profile::intel(), Profile::amd()]
        .into_iter()
        .flat_map(|profile| [36, 39, 46, 48, 52].map(|bits| (profile, bits)))
    {
        let profile = profile.with_physical_address_bits(bits);
        for from in MODES {
            for bootstrap in [0, 0x100] {
                for pair in 0..4u64 {
                    for bit in 0..64 {
                        let value = (DEFAULT | bootstrap | pair << 10) ^ 1 << bit;
                        faults += u32::from(one(profile, from | 0x100, value));
                    }
                }
            }
        }
    }
    assert!(faults > 1000, "most bits are reserved: {faults}");
}

/// Writes `value` in the mode of `from`; whether that faulted.
fn one(profile: Profile, from: u64, value: u64) -> bool {
    let mut plain = Plain::new(profile);
    plain.set_msr(IA32_APIC_BASE, from);
    assert_eq!(plain.slot.base().bits(), from);
    let expected = written(from, value, profile.physical_address_bits().into(), profile.vendor());
    let before: Vec<u32> = (0..0x1000).step_by(16).map(|at| plain.slot.page().load(at)).collect();
    let result = plain.wrmsr(IA32_APIC_BASE, value);
    assert_eq!(result.is_ok(), expected.is_some(), "{value:#x} over {from:#x}");
    assert_eq!(plain.slot.base().bits(), expected.unwrap_or(from), "{value:#x} over {from:#x}");
    if expected.is_none() {
        let after = (0..0x1000).step_by(16).map(|at| plain.slot.page().load(at));
        assert!(before.into_iter().eq(after), "a fault changes nothing");
    }
    expected.is_none()
}
