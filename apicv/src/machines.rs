//! Processors for tests, by their VMX capability MSRs.

use vlapic_hal::fake::FixedMsrs;

use crate::capability::Capabilities;
use crate::negotiate::{Feature, Features};

/// The numbers of a Sapphire Rapids as Bochs 3.0 shows them (VM-exit controls: a common value).
/// No IPI virtualization.
pub(crate) const SAPPHIRE_RAPIDS: [(u32, u64); 9] = [
    (0x480, 0x00da_0400_0000_002b),
    (0x481, 0x0000_00ff_0000_0016),
    (0x482, 0xfffb_fffe_0401_e172),
    (0x483, 0x01ff_ffff_0003_6dff),
    (0x48b, 0x06d7_7fff_0000_0000),
    (0x48d, 0x0000_00ff_0000_0016),
    (0x48e, 0xfffb_fffe_0400_6172),
    (0x48f, 0x01ff_ffff_0003_6dfb),
    (0x492, 0x80),
];

/// With everything that this crate can use, IPI virtualization included.
pub(crate) fn full() -> Capabilities {
    with(&[(0x492, 0x90)])
}

/// As [`full`], with these MSRs changed.
pub(crate) fn with(changes: &[(u32, u64)]) -> Capabilities {
    let mut msrs = SAPPHIRE_RAPIDS;
    msrs[8].1 = 0x90;
    for (msr, value) in changes {
        let row = msrs.iter_mut().find(|row| row.0 == *msr);
        row.unwrap().1 = *value;
    }
    Capabilities::detect(&FixedMsrs(&msrs)).unwrap().with_physical_address_bits(46)
}

/// As [`full`], with these bits of the capability MSRs (by number) cleared.
pub(crate) fn lacking(bits: &[(u32, u64)]) -> Capabilities {
    let mut msrs = SAPPHIRE_RAPIDS;
    msrs[8].1 = 0x90;
    for (msr, bits) in bits {
        let row = msrs.iter_mut().find(|row| row.0 == *msr);
        row.unwrap().1 &= !bits;
    }
    Capabilities::detect(&FixedMsrs(&msrs)).unwrap().with_physical_address_bits(46)
}

/// Every set of features, closed under dependencies or not.
pub(crate) fn every_set() -> impl Iterator<Item = Features> {
    (0..1u32 << Feature::COUNT).map(|bits| {
        let features = Feature::ALL.into_iter();
        features.filter(|feature| bits & 1 << *feature as u32 != 0).collect()
    })
}
