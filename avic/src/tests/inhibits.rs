use std::vec::Vec;

use vlapic_core::{ApicBase, Next, Notify, Profile, Register, Trigger};

use super::{INPUT, Options};
use crate::{Face, Feature, Host, Inhibit, Inhibits, Trust, Wanted};

fn only(inhibit: Inhibit) -> Inhibits {
    Inhibits::NONE.with_if(inhibit, true)
}

/// Those that the hypervisor sets, for the VM and for one vCPU: off, posts kept, and on again.
#[test]
fn the_hypervisors_reasons_and_their_way_back() {
    for inhibit in [
        Inhibit::Disabled,
        Inhibit::PitReinjection,
        Inhibit::SynicAutoEoi,
        Inhibit::Sev,
        Inhibit::BlockInterrupts,
        Inhibit::Nested,
    ] {
        for vm_wide in [true, false] {
            let mut rig = Options::vcpus(2).build();
            for index in 0..2 {
                rig.enable(index);
                rig.page(index).write(Register::Ldr, 1 << (24 + index));
                assert_eq!(rig.enter(index), Face::XAvic);
            }
            if vm_wide {
                let told: Vec<_> = rig.shared.inhibit(inhibit).collect();
                assert_eq!(told, [(0, Notify::Kick), (1, Notify::Kick)]);
                assert_eq!(rig.shared.inhibit(inhibit).count(), 0);
            } else {
                assert_eq!(rig.slot(0).inbox().inhibit(inhibit), Notify::Kick);
            }
            // The post comes before the vCPU has noticed, and is not lost.
            let posted = rig.slot(0).request(0x41, Trigger::Edge).notify;
            assert_eq!(posted, Notify::Doorbell { destination: 0x10 });
            let entry = rig.entry(0, INPUT);
            assert_eq!(entry.injected.map(|vector| vector.get()), Some(0x41));
            assert_eq!(Face::of(&rig.vmcbs[0]), Face::Emulated);
            assert_eq!(rig.vcpus[0].inhibits(), only(inhibit));
            assert_eq!(rig.running(0), None);
            let other = if vm_wide { Face::Emulated } else { Face::XAvic };
            assert_eq!(rig.enter(1), other);
            let before: Vec<u32> = words(&rig, 0);

            if vm_wide {
                rig.shared.allow(inhibit);
            } else {
                rig.slot(0).inbox().allow(inhibit);
            }
            assert_eq!(rig.enter(0), Face::XAvic);
            assert_eq!(rig.vcpus[0].inhibits(), Inhibits::NONE);
            assert_eq!(words(&rig, 0), before, "the page is carried over unchanged");
            assert_eq!(rig.running(0), Some(0x10));
        }
    }
}

fn words(rig: &super::Rig, index: usize) -> Vec<u32> {
    let page = rig.page(index);
    (0..0x1000).step_by(4).map(|offset| page.load(offset)).collect()
}

#[test]
fn no_apic_and_a_moved_one() {
    let mut rig = Options::vcpus(1).build();
    let base = rig.slot(0).base().bits();
    let write = |rig: &mut super::Rig, value| {
        assert!(rig.vcpus[0].apic_mut().write_msr(0x1B, value, 0).is_ok());
        let face = rig.enter(0);
        (face, rig.vcpus[0].inhibits())
    };
    let on = (Face::XAvic, Inhibits::NONE);
    assert_eq!(write(&mut rig, base), on);
    let off = (Face::Emulated, only(Inhibit::Absent));
    assert_eq!(write(&mut rig, base & !(1 << 11)), off);
    assert_eq!(write(&mut rig, base), on);
    let moved = base - ApicBase::DEFAULT_ADDRESS + 0xFED0_0000;
    assert_eq!(write(&mut rig, moved), (Face::Emulated, only(Inhibit::BaseMoved)));
    assert!(rig.window.map(), "nobody is at the default address");
    rig.window.unmapped();
    assert_eq!(write(&mut rig, base), on);
}

#[test]
fn x2apic_mode_without_x2avic() {
    let wanted = Wanted::ALL.without(Feature::X2Avic);
    let mut rig = Options { wanted, ..Options::vcpus(1) }.build();
    assert_eq!(rig.enter(0), Face::XAvic);
    rig.enter_x2apic(0);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert_eq!(rig.vcpus[0].inhibits(), only(Inhibit::X2ApicUnsupported));
    assert!(rig.maps[0].intercepts_read(0x808));
}

/// The limits of each face, at their edges.
#[test]
fn ids_beyond_the_tables() {
    let cases = [
        (254, 1, false, Face::XAvic, Face::X2Avic),
        (256, 1, false, Face::Emulated, Face::X2Avic),
        (511, 1, false, Face::Emulated, Face::X2Avic),
        (512, 8, false, Face::Emulated, Face::Emulated),
        (512, 1, true, Face::Emulated, Face::Emulated),
        (512, 2, true, Face::Emulated, Face::X2Avic),
        (1023, 2, true, Face::Emulated, Face::X2Avic),
        (1024, 2, true, Face::Emulated, Face::Emulated),
        (4095, 8, true, Face::Emulated, Face::X2Avic),
        (4096, 8, true, Face::Emulated, Face::Emulated),
    ];
    for (highest, table_pages, extended, xapic, x2apic) in cases {
        let wanted = if extended { Wanted::ALL } else { Wanted::ALL.without(Feature::ExtendedIds) };
        let options =
            Options { ids: std::vec![0, highest], table_pages, wanted, ..Options::vcpus(0) };
        let mut rig = options.build();
        assert_eq!(rig.enter(0), xapic, "{highest}");
        let too_large = rig.vcpus[0].inhibits().contains(Inhibit::IdTooLarge);
        assert_eq!(too_large, xapic == Face::Emulated);
        rig.enter_x2apic(0);
        assert_eq!(rig.enter(0), x2apic, "{highest}");
    }
}

#[test]
fn id_255_only_if_trusted() {
    for entry_255 in [false, true] {
        let host = Host { trust: Trust { entry_255, ..Trust::NOTHING }, ..Host::new() };
        let ids = std::vec![0, 255, 256];
        let mut rig = Options { ids, host, ..Options::vcpus(0) }.build();
        rig.enter_x2apic(0);
        let face = rig.enter(0);
        if entry_255 {
            assert_eq!(face, Face::X2Avic);
        } else {
            assert_eq!(face, Face::Emulated);
            assert_eq!(rig.vcpus[0].inhibits(), only(Inhibit::Id255));
        }
    }
}

#[test]
fn a_renamed_apic_stops_all() {
    let profile = Profile::amd().with_writable_xapic_id(true);
    let mut rig = Options { profile, ..Options::vcpus(2) }.build();
    for index in 0..2 {
        rig.enable(index);
        rig.page(index).write(Register::Ldr, 1 << (24 + index));
        assert_eq!(rig.enter(index), Face::XAvic);
    }
    rig.page(1).write(Register::Id, 9 << 24);
    let refused = rig.entry(1, INPUT).next;
    assert_eq!(refused, Next::KickOthers);
    assert_eq!(rig.enter(1), Face::Emulated);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(rig.vcpus[0].inhibits().contains(Inhibit::IdModified));
    rig.page(1).write(Register::Id, 1 << 24);
    assert_eq!(rig.enter(1), Face::XAvic);
    assert_eq!(rig.enter(0), Face::XAvic);
}

#[test]
fn interrupt_enable_registers() {
    let mut rig = Options::vcpus(1).build();
    assert_eq!(rig.enter(0), Face::XAvic);
    rig.page(0).write(Register::ExtendedControl, 1);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert_eq!(rig.vcpus[0].inhibits(), only(Inhibit::InterruptEnableRegisters));
    rig.page(0).write(Register::ExtendedControl, 0);
    assert_eq!(rig.enter(0), Face::XAvic);
}

#[test]
fn software_enable_is_no_part_of_it() {
    let mut rig = Options::vcpus(1).build();
    assert!(!rig.slot(0).accepts());
    assert_eq!(rig.enter(0), Face::XAvic);
}
