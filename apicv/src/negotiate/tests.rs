extern crate std;
use std::string::ToString;
use std::vec::Vec;

use super::*;
use crate::machines::{every_set, full, lacking};

fn levels() -> [Wanted; 7] {
    let up_to = Wanted::up_to;
    [
        Wanted::NONE,
        up_to(Feature::TprShadow),
        up_to(Feature::X2Apic),
        up_to(Feature::RegisterVirtualization),
        up_to(Feature::VirtualInterruptDelivery),
        up_to(Feature::PostedInterrupts),
        up_to(Feature::IpiVirtualization),
    ]
}

#[test]
fn a_full_machine_grants_every_level_as_asked() {
    for wanted in levels() {
        let grant = negotiate(wanted, &full());
        assert_eq!(grant.features(), wanted.features());
        assert_eq!(grant.refused().count(), 0);
    }
    for pair in levels().windows(2) {
        assert!(pair[1].features().contains_all(pair[0].features()));
        assert_ne!(pair[0], pair[1]);
    }
    assert_eq!(levels()[6], Wanted::ALL);
    assert_eq!(Wanted::ALL.features(), Feature::ALL.into_iter().collect());
    assert_eq!(Grant::emulated(), negotiate(Wanted::NONE, &full()));
}

#[test]
fn each_thing_a_processor_lacks_has_its_consequences() {
    use Feature::*;
    use vlapic_core::Reason::{Needs, NotSupported};
    let tpr = Needs(TprShadow);
    let delivery = (PostedInterrupts, Needs(VirtualInterruptDelivery));
    let ipi = (IpiVirtualization, Needs(PostedInterrupts));
    type Row<'a> = ((u32, u32), &'a [(Feature, Reason)]);
    let rows: &[Row<'_>] = &[
        (
            (0x48e, 53),
            &[
                (TprShadow, NotSupported),
                (X2Apic, tpr),
                (RegisterVirtualization, tpr),
                (VirtualInterruptDelivery, tpr),
                delivery,
                ipi,
            ],
        ),
        ((0x48b, 32), &[(ApicAccess, NotSupported)]),
        ((0x48b, 36), &[(X2Apic, NotSupported)]),
        ((0x48e, 60), &[(X2Apic, Reason::Obstacle(Obstacle::MsrBitmaps))]),
        ((0x48b, 40), &[(RegisterVirtualization, NotSupported)]),
        ((0x48b, 41), &[(VirtualInterruptDelivery, NotSupported), delivery, ipi]),
        (
            (0x48d, 32),
            &[
                (VirtualInterruptDelivery, Reason::Obstacle(Obstacle::ExternalInterruptExiting)),
                delivery,
                ipi,
            ],
        ),
        ((0x48d, 39), &[(PostedInterrupts, NotSupported), ipi]),
        ((0x48f, 47), &[(PostedInterrupts, Reason::Obstacle(Obstacle::AcknowledgeOnExit)), ipi]),
        ((0x492, 4), &[(IpiVirtualization, NotSupported)]),
        (
            (0x48e, 63),
            &[
                (ApicAccess, NotSupported),
                (X2Apic, NotSupported),
                (RegisterVirtualization, NotSupported),
                (VirtualInterruptDelivery, NotSupported),
                delivery,
                ipi,
            ],
        ),
    ];
    for &((msr, bit), expected) in rows {
        let grant = negotiate(Wanted::ALL, &lacking(&[(msr, 1 << bit)]));
        assert_eq!(grant.refused().collect::<Vec<_>>(), expected, "{msr:#x} bit {bit}");
        for feature in Feature::ALL {
            let refused = expected.iter().any(|row| row.0 == feature);
            assert_eq!(grant.features().contains(feature), !refused);
        }
    }
}

/// Whatever is asked for, what is granted was asked for and can be asked for again as it is.
#[test]
fn grants_are_closed() {
    for caps in [full(), lacking(&[(0x48b, 1 << 41)]), lacking(&[(0x48e, 1 << 53)])] {
        for set in every_set() {
            let grant = negotiate(set.into(), &caps);
            assert!(set.contains_all(grant.features()));
            let again = negotiate(grant.features().into(), &caps);
            assert_eq!(again.features(), grant.features());
            assert_eq!(again.refused().count(), 0);
        }
    }
}

#[test]
fn what_was_not_wanted_is_no_refusal() {
    let wanted = Wanted::ALL.without(Feature::VirtualInterruptDelivery);
    let grant = negotiate(wanted, &full());
    let reason = |feature| grant.reason(feature);
    assert_eq!(reason(Feature::VirtualInterruptDelivery), Some(Reason::NotWanted));
    assert_eq!(
        reason(Feature::PostedInterrupts),
        Some(Reason::Needs(Feature::VirtualInterruptDelivery))
    );
    assert_eq!(reason(Feature::TprShadow), None);
    assert_eq!(grant.refused().count(), 2);
}

#[test]
fn a_grant_reads_as_a_line() {
    let wanted =
        Wanted::up_to(Feature::TprShadow).with(Feature::PostedInterrupts).with(Feature::X2Apic);
    let grant = negotiate(wanted, &lacking(&[(0x48b, 1 << 36)]));
    assert_eq!(
        grant.to_string(),
        "granted: tpr-shadow; refused: x2apic (not supported by the processor), \
         posted-interrupts (needs virtual-interrupt-delivery)"
    );
    assert_eq!(Grant::emulated().to_string(), "granted: none");
    assert_eq!(
        Wanted::up_to(Feature::X2Apic).features().to_string(),
        "tpr-shadow,apic-access,x2apic"
    );
}
