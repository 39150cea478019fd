//! What a driver detects on the APICv model, and which VMCS fields it then finds.

use vlapic_hal::{FieldKind, MsrError, ReadMsr, Vmcs, VmcsError, VmcsField};
use vlapic_tests::model::{Capability, Feature, Level, VmcsRegion, field};

/// How each feature is found: an MSR and its bit.
const TESTS: [(Feature, u32, u32); 14] = [
    (Feature::TprShadow, 0x482, 53),
    (Feature::TprShadow, 0x48e, 53),
    (Feature::VirtualizeApicAccesses, 0x48b, 32),
    (Feature::VirtualizeX2Apic, 0x48b, 36),
    (Feature::ApicRegisterVirtualization, 0x48b, 40),
    (Feature::VirtualInterruptDelivery, 0x48b, 41),
    (Feature::PostedInterrupts, 0x481, 39),
    (Feature::PostedInterrupts, 0x48d, 39),
    (Feature::AcknowledgeOnExit, 0x483, 47),
    (Feature::AcknowledgeOnExit, 0x48f, 47),
    (Feature::SecondaryControls, 0x482, 63),
    (Feature::TertiaryControls, 0x482, 49),
    (Feature::TertiaryControls, 0x48e, 49),
    (Feature::IpiVirtualization, 0x492, 4),
];

#[test]
fn each_feature_is_one_bit() {
    for (feature, msr, bit) in TESTS {
        let with = Capability::full().read_msr(msr).expect("the register exists");
        let without =
            Capability::full().without(feature).read_msr(msr).expect("the register exists");
        assert_eq!(with ^ without, 1 << bit, "{feature:?} in {msr:#x}");
        assert_eq!(with >> bit & 1, 1, "{feature:?} in {msr:#x}");
    }
}

#[test]
fn levels_add_up() {
    for (level, features) in [
        (Level::TprShadow, vec![Feature::TprShadow]),
        (Level::ApicAccess, vec![Feature::VirtualizeApicAccesses]),
        (
            Level::RegisterVirtualization,
            vec![Feature::ApicRegisterVirtualization, Feature::VirtualizeX2Apic],
        ),
        (Level::VirtualInterruptDelivery, vec![Feature::VirtualInterruptDelivery]),
        (Level::PostedInterrupts, vec![Feature::PostedInterrupts]),
        (Level::IpiVirtualization, vec![Feature::TertiaryControls, Feature::IpiVirtualization]),
    ] {
        for other in Level::ALL {
            for &feature in &features {
                assert_eq!(
                    Capability::at(other).has(feature),
                    other >= level,
                    "{feature:?} at {other:?}"
                );
            }
        }
    }
}

#[test]
fn registers_that_do_not_exist_fault() {
    for (feature, msrs) in [
        (Feature::SecondaryControls, vec![0x48b]),
        (Feature::TertiaryControls, vec![0x492]),
        (Feature::TrueControls, vec![0x48d, 0x48e, 0x48f, 0x490]),
    ] {
        for msr in msrs {
            assert!(Capability::full().read_msr(msr).is_ok());
            let missing = Capability::full().without(feature).read_msr(msr);
            assert_eq!(missing, Err(MsrError::GeneralProtection(msr)));
        }
    }
}

#[test]
fn what_must_be_1_may_be_1() {
    for level in Level::ALL {
        for msr in [0x481, 0x482, 0x483, 0x484, 0x48b, 0x48d, 0x48e, 0x48f, 0x490] {
            let value = Capability::at(level).read_msr(msr).expect("the register exists");
            let (must, may) = (value as u32, (value >> 32) as u32);
            assert_eq!(must & !may, 0, "{msr:#x} at {level:?}");
        }
        let basic = Capability::at(level).read_msr(0x480).expect("the register exists");
        assert_eq!((basic >> 50 & 0xf, basic >> 55 & 1), (6, 1), "write-back, true controls");
    }
}

#[test]
fn fields_exist_with_their_feature() {
    for (encoding, feature) in [
        (0x0002, Feature::PostedInterrupts),
        (0x0008, Feature::IpiVirtualization),
        (0x0810, Feature::VirtualInterruptDelivery),
        (0x2004, Feature::MsrBitmaps),
        (0x2012, Feature::TprShadow),
        (0x2014, Feature::VirtualizeApicAccesses),
        (0x2016, Feature::PostedInterrupts),
        (0x201c, Feature::VirtualInterruptDelivery),
        (0x2023, Feature::VirtualInterruptDelivery),
        (0x2034, Feature::TertiaryControls),
        (0x2042, Feature::IpiVirtualization),
        (0x401c, Feature::TprShadow),
        (0x401e, Feature::SecondaryControls),
    ] {
        let field = VmcsField::new(encoding);
        let mut with = VmcsRegion::new(Capability::full());
        assert_eq!((with.write(field, 1), with.read(field)), (Ok(()), Ok(1)), "{field}");
        let mut without = VmcsRegion::new(Capability::full().without(feature));
        let missing = Err(VmcsError::Unsupported(field));
        assert_eq!(
            (without.write(field, 1), without.read(field).map(|_| ())),
            (missing, missing),
            "{field}"
        );
    }
}

#[test]
fn fields_have_their_width() {
    let mut region = VmcsRegion::new(Capability::full());
    for (encoding, wanted) in [
        (0x0002, 0xffff),
        (0x0810, 0xffff),
        (0x2012, u64::MAX),
        (0x401c, 0xffff_ffff),
        (0x6820, u64::MAX),
    ] {
        let field = VmcsField::new(encoding);
        assert_eq!(region.write(field, u64::MAX), Ok(()));
        assert_eq!(region.read(field), Ok(wanted), "{field}");
    }
    let surplus: Vec<_> = region.too_wide_writes().iter().map(|(encoding, _)| *encoding).collect();
    assert_eq!(surplus, [0x0002, 0x0810, 0x401c]);
}

#[test]
fn the_odd_encoding_is_the_high_half() {
    let mut region = VmcsRegion::new(Capability::full());
    let (whole, high) = (VmcsField::new(0x2016), VmcsField::new(0x2017));
    assert_eq!(region.write(whole, 0x1111_2222_3333_4444), Ok(()));
    assert_eq!(region.read(high), Ok(0x1111_2222));
    assert_eq!(region.write(high, 0x5555_6666), Ok(()));
    assert_eq!(region.read(whole), Ok(0x5555_6666_3333_4444));
    let not_a_field = VmcsField::new(0x401d);
    assert_eq!(region.read(not_a_field), Err(VmcsError::Unsupported(not_a_field)));
}

#[test]
fn exit_information_is_read_only() {
    let mut region = VmcsRegion::new(Capability::full());
    for encoding in [field::EXIT_REASON, field::EXIT_QUALIFICATION, field::INSTRUCTION_ERROR] {
        let field = VmcsField::new(encoding);
        assert_eq!(field.kind(), FieldKind::ExitInformation);
        assert_eq!(region.write(field, 1), Err(VmcsError::ReadOnly(field)));
        assert_eq!(region.read(field), Ok(0));
    }
}
