use std::string::ToString;
use std::vec::Vec;

use super::*;

const FULL: Capabilities = Capabilities {
    avic: true,
    x2avic: true,
    x2avic_extended: true,
    extended_lvt: true,
    nested_paging: true,
    vmcb_clean: true,
    next_rip: true,
    vgif: true,
    vnmi: true,
    idle_hlt: true,
    host_x2apic: true,
    erratum_1235: false,
    snp_writes_in_use_pages: false,
    address_bits: 48,
};

fn refused(wanted: Wanted, caps: Capabilities, host: Host) -> Vec<(Feature, Reason)> {
    negotiate(wanted, &caps, &host).refused().collect()
}

#[test]
fn all_is_all() {
    let grant = negotiate(Wanted::ALL, &FULL, &Host::new());
    assert_eq!(grant.features().iter().collect::<Vec<_>>(), Feature::ALL);
    assert_eq!(grant.refused().count(), 0);
    assert_eq!(refused(Wanted::NONE, FULL, Host::new()), []);
    let emulated = negotiate(Wanted::NONE, &FULL, &Host::new());
    assert!(emulated.features().is_empty());
    assert_eq!(emulated.reason(Feature::Avic), Some(Reason::NotWanted));
}

#[test]
fn each_refusal_has_its_reason() {
    use Feature::*;
    let host = Host::new();
    let one = |caps, host| refused(Wanted::ALL, caps, host);
    assert_eq!(
        one(Capabilities { x2avic: false, ..FULL }, host),
        [(X2Avic, Reason::NotSupported), (ExtendedIds, Reason::Needs(X2Avic))]
    );
    assert_eq!(
        one(Capabilities { x2avic_extended: false, ..FULL }, host),
        [(ExtendedIds, Reason::NotSupported)]
    );
    assert_eq!(
        one(Capabilities { host_x2apic: false, ..FULL }, host)[0],
        (X2Avic, Reason::Obstacle(Obstacle::HostX2Apic))
    );
    assert_eq!(
        one(Capabilities { erratum_1235: true, ..FULL }, host),
        [(IsRunning, Reason::Obstacle(Obstacle::Erratum1235))]
    );
    assert_eq!(
        one(Capabilities { extended_lvt: false, ..FULL }, host),
        [(ExtendedLvt, Reason::NotSupported)]
    );
    assert_eq!(
        one(Capabilities { vnmi: false, ..FULL }, host),
        [(VirtualNmi, Reason::NotSupported)]
    );
    assert_eq!(
        one(Capabilities { vgif: false, ..FULL }, host),
        [(VirtualNmi, Reason::Obstacle(Obstacle::VirtualGif))]
    );
    assert_eq!(
        one(FULL, Host { doorbell: false, ..host }),
        [(Doorbell, Reason::Obstacle(Obstacle::NoDoorbell))]
    );
}

#[test]
fn without_avic_only_virtual_nmi_is_left() {
    let host = Host::new();
    for (caps, host, reason) in [
        (Capabilities { avic: false, ..FULL }, host, Reason::NotSupported),
        (
            Capabilities { nested_paging: false, ..FULL },
            host,
            Reason::Obstacle(Obstacle::NestedPaging),
        ),
        (FULL, Host { nested_paging: false, ..host }, Reason::Obstacle(Obstacle::NestedPaging)),
        (FULL, Host { snp: true, ..host }, Reason::Obstacle(Obstacle::SnpHost)),
    ] {
        let grant = negotiate(Wanted::ALL, &caps, &host);
        assert_eq!(grant.reason(Feature::Avic), Some(reason));
        assert_eq!(grant.reason(Feature::IsRunning), Some(Reason::Needs(Feature::Avic)));
        assert_eq!(grant.features().iter().collect::<Vec<_>>(), [Feature::VirtualNmi]);
    }
    let snp = Capabilities { snp_writes_in_use_pages: true, ..FULL };
    let grant = negotiate(Wanted::ALL, &snp, &Host { snp: true, ..host });
    assert!(grant.features().contains(Feature::Avic));
}

#[test]
fn a_grant_reads_well() {
    let caps = Capabilities { erratum_1235: true, vnmi: false, ..FULL };
    let wanted = Wanted::ALL.without(Feature::X2Avic).without(Feature::ExtendedIds);
    assert_eq!(
        negotiate(wanted, &caps, &Host::new()).to_string(),
        "granted: avic,doorbell,extended-lvt; refused: is-running (erratum 1235), \
         virtual-nmi (not supported by the processor)"
    );
}
