//! VM entry on the APICv model: the checks of the controls, each alone.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{
    Capability, EntryFailure, Feature, Knobs, Violation, VmcsRegion, controls, field,
};

const ANY_WIDTH: u64 = 1 << 45;
const TOO_WIDE: u64 = 1 << 46;

/// What a VMCS fails on after `change`.
fn violations(setup: Setup, change: impl FnOnce(&mut VmcsRegion)) -> Vec<Violation> {
    violations_with(setup, Knobs::default(), change)
}

fn violations_with(
    setup: Setup,
    knobs: Knobs,
    change: impl FnOnce(&mut VmcsRegion),
) -> Vec<Violation> {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, setup, knobs);
    change(rig.vmcs());
    match rig.try_enter() {
        Ok(_) => Vec::new(),
        Err(EntryFailure::InvalidControls(found)) => {
            assert_eq!(rig.vmcs().get(field::INSTRUCTION_ERROR), 7);
            assert!(!rig.core.in_guest());
            found
        }
        Err(failure) => unreachable!("{failure:?} with no event and no blocking"),
    }
}

fn clear(vmcs: &mut VmcsRegion, encoding: u32, bits: u32) {
    vmcs.set(encoding, vmcs.get(encoding) & !u64::from(bits));
}

#[test]
fn every_consistent_setup_enters() {
    for setup in [
        Setup::NONE,
        Setup { apic_accesses: true, ..Setup::NONE },
        Setup { tpr_shadow: true, ..Setup::NONE },
        Setup::FLEX_PRIORITY,
        Setup::REGISTERS,
        Setup { delivery: true, ..Setup::FLEX_PRIORITY },
        Setup { delivery: true, tpr_shadow: true, ..Setup::NONE },
        Setup::DELIVERY,
        Setup::POSTED,
        Setup::IPI,
        Setup { ipi: true, ..Setup::FLEX_PRIORITY },
    ] {
        assert_eq!(violations(setup, |_| ()), [], "{setup:?}");
        if setup.tpr_shadow {
            assert_eq!(violations(setup.in_x2apic(), |_| ()), [], "{:?}", setup.in_x2apic());
        }
    }
}

/// A setup, a change to its VMCS, and what the entry then fails on.
type Row = (&'static str, Setup, fn(&mut VmcsRegion), &'static [Violation]);

#[test]
fn every_row_of_the_check_table() {
    use Violation as V;
    let shadow = Setup { tpr_shadow: true, ..Setup::NONE };
    let rows: [Row; 26] = [
        (
            "page alignment",
            shadow,
            |v| v.set(field::VIRTUAL_APIC_ADDRESS, 0x10_0800),
            &[V::VirtualApicAddress],
        ),
        (
            "page width",
            shadow,
            |v| v.set(field::VIRTUAL_APIC_ADDRESS, TOO_WIDE),
            &[V::VirtualApicAddress],
        ),
        ("threshold", shadow, |v| v.set(field::TPR_THRESHOLD, 1), &[V::TprThresholdAboveVtpr]),
        (
            "threshold reserved",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::TPR_THRESHOLD, 0x10),
            &[V::TprThresholdReserved],
        ),
        (
            "threshold reserved, high",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::TPR_THRESHOLD, 0x8000_0000),
            &[V::TprThresholdReserved],
        ),
        (
            "threshold with delivery",
            Setup::DELIVERY,
            |v| v.set(field::TPR_THRESHOLD, 0xffff_ffff),
            &[],
        ),
        (
            "access page alignment",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, 1),
            &[V::ApicAccessAddress],
        ),
        (
            "access page width",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, TOO_WIDE),
            &[V::ApicAccessAddress],
        ),
        (
            "access page in range",
            Setup::FLEX_PRIORITY,
            |v| v.set(field::APIC_ACCESS_ADDRESS, ANY_WIDTH),
            &[],
        ),
        (
            "x2APIC needs the shadow",
            Setup { x2apic: true, ..Setup::NONE },
            |_| (),
            &[V::X2ApicWithoutTprShadow],
        ),
        (
            "registers need the shadow",
            Setup { register_virtualization: true, ..Setup::NONE },
            |_| (),
            &[V::RegisterVirtualizationWithoutTprShadow],
        ),
        (
            "delivery needs the shadow",
            Setup { delivery: true, ..Setup::NONE },
            |_| (),
            &[V::DeliveryWithoutTprShadow],
        ),
        (
            "x2APIC or accesses",
            Setup { x2apic: true, ..Setup::FLEX_PRIORITY },
            |_| (),
            &[V::X2ApicWithApicAccesses],
        ),
        (
            "delivery needs interrupt exits",
            Setup::DELIVERY,
            |v| clear(v, field::PIN_BASED, controls::pin::EXTERNAL_INTERRUPT_EXITING),
            &[V::DeliveryWithoutExternalInterruptExiting],
        ),
        (
            "posting needs delivery",
            Setup { posted: true, ..Setup::REGISTERS },
            |_| (),
            &[V::PostedWithoutDelivery],
        ),
        (
            "posting needs acknowledgement",
            Setup::POSTED,
            |v| clear(v, field::VM_EXIT_CONTROLS, controls::exit::ACKNOWLEDGE_INTERRUPT),
            &[V::PostedWithoutAcknowledge],
        ),
        (
            "notification vector",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0x100),
            &[V::NotificationVector],
        ),
        (
            "notification vector 255",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xff),
            &[],
        ),
        (
            "descriptor alignment",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, Storage::DESCRIPTOR + 32),
            &[V::DescriptorAddress],
        ),
        (
            "descriptor width",
            Setup::POSTED,
            |v| v.set(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, TOO_WIDE),
            &[V::DescriptorAddress],
        ),
        (
            "PID-pointer table alignment",
            Setup::IPI,
            |v| v.set(field::PID_POINTER_TABLE_ADDRESS, Storage::PID_POINTERS + 4),
            &[V::PidPointerTableAddress],
        ),
        (
            "PID-pointer table's end",
            Setup::IPI,
            |v| v.set(field::PID_POINTER_TABLE_ADDRESS, TOO_WIDE - 8 * 15),
            &[V::PidPointerTableAddress],
        ),
        (
            "IPIs need the shadow",
            Setup { ipi: true, ..Setup::NONE },
            |_| (),
            &[V::IpiVirtualizationWithoutTprShadow],
        ),
        (
            "MSR bitmap",
            Setup::NONE,
            |v| v.set(field::MSR_BITMAP_ADDRESS, 0x800),
            &[V::MsrBitmapAddress],
        ),
        (
            "secondary controls not active",
            Setup { delivery: true, x2apic: true, ..Setup::NONE },
            |v| clear(v, field::PRIMARY, controls::primary::SECONDARY),
            &[],
        ),
        (
            "tertiary controls not active",
            Setup { ipi: true, ..Setup::NONE },
            |v| clear(v, field::PRIMARY, controls::primary::TERTIARY),
            &[],
        ),
    ];
    for (name, setup, change, wanted) in rows {
        assert_eq!(violations(setup, change), wanted, "{name}");
    }
}

#[test]
fn addresses_may_be_limited_to_32_bits() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, Knobs::default());
    let mut vmcs =
        VmcsRegion::with_default_controls(Capability::full().with(Feature::Addresses32Bit));
    Setup::FLEX_PRIORITY.program(&mut vmcs);
    vmcs.set(field::APIC_ACCESS_ADDRESS, 1 << 32);
    rig.core.vmptrld(vmcs);
    assert_eq!(
        rig.try_enter(),
        Err(EntryFailure::InvalidControls(vec![Violation::ApicAccessAddress]))
    );
}

#[test]
fn a_control_the_processor_lacks_fails_the_entry() {
    for (feature, setup, wanted) in [
        (Feature::TprShadow, Setup { tpr_shadow: true, ..Setup::NONE }, Violation::PrimaryReserved),
        (Feature::VirtualizeApicAccesses, Setup::FLEX_PRIORITY, Violation::SecondaryReserved),
        (Feature::VirtualizeX2Apic, Setup::REGISTERS.in_x2apic(), Violation::SecondaryReserved),
        (Feature::ApicRegisterVirtualization, Setup::REGISTERS, Violation::SecondaryReserved),
        (Feature::VirtualInterruptDelivery, Setup::DELIVERY, Violation::SecondaryReserved),
        (Feature::PostedInterrupts, Setup::POSTED, Violation::PinBasedReserved),
        (Feature::AcknowledgeOnExit, Setup::POSTED, Violation::ExitControlsReserved),
        (Feature::TertiaryControls, Setup::IPI, Violation::PrimaryReserved),
        (Feature::IpiVirtualization, Setup::IPI, Violation::TertiaryReserved),
    ] {
        let storage = Storage::new();
        let mut rig = Rig::new(&storage, setup, Knobs::default());
        let mut vmcs = VmcsRegion::with_default_controls(Capability::full().without(feature));
        setup.program(&mut vmcs);
        rig.core.vmptrld(vmcs);
        assert_eq!(
            rig.try_enter(),
            Err(EntryFailure::InvalidControls(vec![wanted])),
            "{feature:?}"
        );
    }
}

#[test]
fn controls_that_must_be_1() {
    for (encoding, bit, wanted) in [
        (field::PIN_BASED, 1 << 1, Violation::PinBasedReserved),
        (field::PRIMARY, 1 << 1, Violation::PrimaryReserved),
        (field::VM_EXIT_CONTROLS, 1, Violation::ExitControlsReserved),
    ] {
        assert_eq!(violations(Setup::NONE, |vmcs| clear(vmcs, encoding, bit)), [wanted]);
    }
}

#[test]
fn ipi_checks_are_a_knob() {
    let knobs = Knobs { ipiv_entry_checks: false, ..Knobs::default() };
    let found = violations_with(Setup::IPI, knobs, |v| v.set(field::PID_POINTER_TABLE_ADDRESS, 4));
    assert_eq!(found, []);
}

#[test]
fn nothing_to_enter_without_a_vmcs() {
    let storage = Storage::new();
    let mut rig = Rig::new(&storage, Setup::NONE, Knobs::default());
    assert!(rig.core.vmclear().is_some());
    assert_eq!(rig.try_enter(), Err(EntryFailure::NoCurrentVmcs));
}
