use vlapic_core::{Inbox, Notify};

use super::{CAPS, INPUT, Options, Rig, address};
use crate::{Capabilities, GuestTarget, Inhibit};

fn rig(caps: Capabilities) -> Rig {
    let rig = Options { caps, ..Options::vcpus(2) }.build();
    for (index, irte) in rig.irtes.iter().enumerate().take(2) {
        let target = GuestTarget {
            vector: 0x55,
            backing_page: address(rig.page(index)).unwrap(),
            destination: 0,
            running: false,
            log: false,
            tag: index as u32,
            suppress_page_faults: true,
        };
        irte.store_disabled(target.encode().unwrap());
    }
    rig
}

fn state(rig: &Rig, index: usize) -> (bool, bool, u32) {
    let target = rig.irtes[index].load().decode().unwrap();
    assert_eq!(Some(target.backing_page), address(rig.page(index)));
    assert_eq!((target.vector, target.tag), (0x55, index as u32));
    (target.running, target.log, target.destination)
}

#[test]
fn routes_follow_their_vcpu() {
    for erratum_1235 in [false, true] {
        let mut rig = rig(Capabilities { erratum_1235, ..CAPS });
        let routes = rig.shared.routes();
        assert_eq!(routes[0].attach(rig.shared, 0), Some(Notify::None));
        assert_eq!(routes[1].attach(rig.shared, 1), Some(Notify::None));
        assert_eq!(routes[2].attach(rig.shared, 2), None, "no such vCPU");
        assert_eq!(state(&rig, 0), (false, false, 0));
        rig.enter(0);
        assert_eq!(state(&rig, 0), (true, false, 0x10), "whatever the erratum");
        assert_eq!(state(&rig, 1), (false, false, 0));
        rig.vcpus[0].preempt();
        assert_eq!(state(&rig, 0), (false, false, 0x10));
        assert!(rig.vcpus[0].block(INPUT));
        assert_eq!(state(&rig, 0), (false, true, 0x10), "the log wakes it");
        assert_eq!(rig.slot(0).inbox().announce(), Notify::Wake);
        rig.enter(0);
        let _ = rig.slot(0).inbox().inhibit(Inhibit::Nested);
        rig.enter(0);
        assert_eq!(state(&rig, 0), (false, true, 0x10), "emulated: the log kicks it");
        assert_eq!(rig.slot(0).inbox().announce(), Notify::Kick);
    }
}

#[test]
fn a_route_attached_late_finds_the_vcpu() {
    let mut rig = rig(CAPS);
    rig.enter(0);
    let route = &rig.shared.routes()[0];
    assert_eq!(route.target(), None);
    // What came before may have told nobody.
    let doorbell = Notify::Doorbell { destination: 0x10 };
    assert_eq!(route.attach(rig.shared, 0), Some(doorbell));
    assert_eq!(state(&rig, 0), (true, false, 0x10));
    assert!(rig.vcpus[0].block(INPUT));
    assert_eq!(route.attach(rig.shared, 0), Some(Notify::Wake));
    rig.enter(0);
    route.detach();
    rig.vcpus[0].preempt();
    assert_eq!(state(&rig, 0), (true, false, 0x10), "nobody's now");
}

#[test]
fn attaching_races_with_running() {
    let mut rig = rig(CAPS);
    let shared = rig.shared;
    for round in 0..300 {
        shared.routes()[0].detach();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(shared.routes()[0].attach(shared, 0).is_some()));
            if round % 2 == 0 {
                rig.enter(0);
            } else {
                rig.vcpus[0].preempt();
            }
        });
        let expected = if round % 2 == 0 { (true, false, 0x10) } else { (false, false, 0x10) };
        assert_eq!(state(&rig, 0), expected, "round {round}");
    }
}
