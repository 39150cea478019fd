use vlapic_core::Mode;
use vlapic_hal::VmcsField;
use vlapic_hal::fake::MemoryVmcs;

use super::*;
use crate::machines::{every_set, full, lacking, with};
use crate::msr_bitmap::MsrBitmap;
use crate::negotiate::{Features, Wanted, negotiate};
use crate::program::{Addresses, program};

type Fields = MemoryVmcs<24>;

/// A VMCS that passes, for `features` in `mode`.
fn programmed(features: Features, mode: Mode) -> Fields {
    let mut vmcs = Fields::new();
    for (field, value) in [
        (field::PIN_CONTROLS, 0x1e),
        (field::PRIMARY_CONTROLS, 0x8400_61f2),
        (field::SECONDARY_CONTROLS, 0x2),
        (field::EXIT_CONTROLS, 0x3_6fff),
    ] {
        vmcs.write(field, value).unwrap();
    }
    let bitmap = MsrBitmap::new();
    let addresses = Addresses {
        virtual_apic: Some(PhysAddr::new(0x11_1000)),
        apic_access: Some(PhysAddr::new(0x22_2000)),
        posted_interrupt_descriptor: Some(PhysAddr::new(0x33_3040)),
        msr_bitmap: Some((&bitmap, PhysAddr::new(0x44_4000))),
        pid_pointer_table: Some((PhysAddr::new(0x55_5008), 3)),
    };
    assert!(program(&mut vmcs, &full(), features, mode, &addresses, 0xf2).is_ok());
    vmcs
}

#[test]
fn whatever_is_programmed_passes() {
    for set in every_set() {
        let features = negotiate(set.into(), &full()).features();
        for mode in [Mode::Disabled, Mode::XApic, Mode::X2Apic] {
            let vmcs = programmed(features, mode);
            assert_eq!(check(&vmcs, &full(), &ApicPage::new()), Ok(()), "{features} {mode:?}");
        }
    }
}

fn broken(features: Features, mode: Mode, changes: &[(VmcsField, u64, u64)]) -> Inconsistent {
    let mut vmcs = programmed(features, mode);
    for (field, clear, set) in changes {
        let value = vmcs.read(*field).unwrap();
        vmcs.write(*field, value & !clear | set).unwrap();
    }
    check(&vmcs, &full(), &ApicPage::new()).unwrap_err()
}

#[test]
fn every_rule_about_controls() {
    use Feature::*;
    let all = Wanted::ALL.features();
    let shadow_off = (field::PRIMARY_CONTROLS, 1 << 21, 0);
    let keep = |secondary: u64| (field::SECONDARY_CONTROLS, 0x311 & !secondary, secondary);
    let no_ipi = (field::PRIMARY_CONTROLS, 1 << 17, 0);
    for (feature, secondary) in
        [(X2Apic, 0x10), (RegisterVirtualization, 0x100), (VirtualInterruptDelivery, 0x200)]
    {
        let found = broken(all, Mode::XApic, &[shadow_off, no_ipi, keep(secondary)]);
        assert_eq!(found, Inconsistent::Needs(feature, TprShadow));
    }
    let found = broken(all, Mode::XApic, &[shadow_off, keep(0)]);
    assert_eq!(found, Inconsistent::Needs(IpiVirtualization, TprShadow));
    let found = broken(all, Mode::XApic, &[(field::SECONDARY_CONTROLS, 0x200, 0)]);
    assert_eq!(found, Inconsistent::Needs(PostedInterrupts, VirtualInterruptDelivery));
    let found = broken(all, Mode::XApic, &[(field::SECONDARY_CONTROLS, 0, 0x10)]);
    assert_eq!(found, Inconsistent::BothModes);
    let found = broken(all, Mode::XApic, &[(field::PIN_CONTROLS, 1, 0)]);
    assert_eq!(found, Inconsistent::NeedsExternalInterruptExiting);
    let found = broken(all, Mode::XApic, &[(field::EXIT_CONTROLS, 0x8000, 0)]);
    assert_eq!(found, Inconsistent::NeedsAcknowledgeOnExit);
    let found =
        broken(all, Mode::XApic, &[(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0, 0x100)]);
    assert_eq!(found, Inconsistent::NotificationVector(0x1f2));
}

#[test]
fn every_address() {
    let all = Wanted::ALL.features();
    for structure in Structure::ALL {
        let field = structure.field();
        let half = structure.alignment() / 2;
        let address = PhysAddr::new(half);
        let found = broken(all, Mode::XApic, &[(field, u64::MAX, half)]);
        assert_eq!(found, Inconsistent::Misaligned(structure, address));
        let address = PhysAddr::new(1 << 46);
        let found = broken(all, Mode::XApic, &[(field, u64::MAX, 1 << 46)]);
        assert_eq!(found, Inconsistent::OutOfReach(structure, address));
    }
    let table = PhysAddr::new((1 << 46) - 24);
    let found = broken(all, Mode::XApic, &[(field::PID_POINTER_TABLE, u64::MAX, table.as_u64())]);
    assert_eq!(found, Inconsistent::OutOfReach(Structure::PidPointerTable, table));
}

/// What is not used is not checked.
#[test]
fn addresses_out_of_use() {
    let mut vmcs = programmed(Features::NONE, Mode::XApic);
    vmcs.write(field::PRIMARY_CONTROLS, 0x8418_61f2).unwrap();
    for structure in Structure::ALL {
        vmcs.write(structure.field(), 1).unwrap();
    }
    vmcs.write(field::TPR_THRESHOLD, 0xff).unwrap();
    assert_eq!(check(&vmcs, &full(), &ApicPage::new()), Ok(()));
}

#[test]
fn the_threshold() {
    let reserved = [(field::TPR_THRESHOLD, 0, 0x10)];
    let above = [(field::TPR_THRESHOLD, 0, 0x5)];
    let shadow = Wanted::up_to(Feature::TprShadow).features();
    let found = broken(shadow, Mode::XApic, &reserved);
    assert_eq!(found, Inconsistent::ThresholdReserved(0x10));
    let found = broken(shadow, Mode::XApic, &above);
    assert_eq!(found, Inconsistent::ThresholdAboveTpr { threshold: 5, tpr: 0 });

    let result = |features, mode, threshold, tpr| {
        let mut vmcs = programmed(features, mode);
        vmcs.write(field::TPR_THRESHOLD, threshold).unwrap();
        let page = ApicPage::new();
        page.write(Register::Tpr, tpr);
        check(&vmcs, &full(), &page)
    };
    assert_eq!(result(shadow, Mode::XApic, 5, 0x50), Ok(()));
    assert!(result(shadow, Mode::XApic, 5, 0x4f).is_err());
    let access = Wanted::up_to(Feature::X2Apic).features();
    assert_eq!(result(access, Mode::XApic, 5, 0), Ok(()), "an exit at once, no failure");
    assert!(result(access, Mode::X2Apic, 5, 0).is_err());
    let delivery = Wanted::up_to(Feature::VirtualInterruptDelivery).features();
    assert_eq!(result(delivery, Mode::X2Apic, 0xff, 0), Ok(()));
}

#[test]
fn settings_that_the_processor_refuses() {
    let vmcs = programmed(Wanted::ALL.features(), Mode::XApic);
    let page = ApicPage::new();
    for (msr, bits, word, refused) in [
        (0x48d, 1 << 39, ControlWord::Pin, 1 << 7),
        (0x48e, 1 << 39, ControlWord::Primary, 1 << 7),
        (0x48b, 1 << 33, ControlWord::Secondary, 1 << 1),
        (0x492, 1 << 4, ControlWord::Tertiary, 1 << 4),
        (0x48f, 1 << 47, ControlWord::Exit, 1 << 15),
    ] {
        let found = check(&vmcs, &lacking(&[(msr, bits)]), &page);
        assert_eq!(found, Err(Inconsistent::Refused(word, refused)));
    }
    let must_be_1 = with(&[(0x48d, 0xff_0000_0036)]);
    let found = check(&vmcs, &must_be_1, &page);
    assert_eq!(found, Err(Inconsistent::Refused(ControlWord::Pin, 1 << 5)));
}

#[test]
fn a_failing_vmread_is_handed_on() {
    use vlapic_hal::wrap::{Fault, FaultInjector, When};
    let error = VmcsError::NoCurrentVmcs;
    let mut position = 0;
    loop {
        position += 1;
        let vmcs = programmed(Wanted::ALL.features(), Mode::XApic);
        let fault = Fault::ReadVmcs { field: None, error };
        let vmcs = FaultInjector::new(vmcs, [(When::Nth(position), fault)]);
        let result = check(&vmcs, &full(), &ApicPage::new());
        if vmcs.struck() == 0 {
            assert_eq!(result, Ok(()));
            break;
        }
        assert_eq!(result, Err(Inconsistent::Vmcs(error)));
    }
    assert_eq!(position, 13, "five words, five addresses, last index, notification vector");
}
