//! Each inhibit comes and goes, by one procedure for all of them.

use std::vec::Vec;

use vlapic_core::{Next, Profile, Register, Trigger};

use super::{CAPS, INPUT, Options, Rig};
use crate::{Face, Feature, Host, Inhibit, Resources, Trust, Wanted};

/// How an inhibit of vCPU 0 comes about.
struct Story {
    options: Options,
    /// The VM is brought so far that vCPU 0 is accelerated.
    begin: fn(&mut Rig),
    /// The inhibit comes.
    come: fn(&mut Rig),
    /// It goes.
    go: fn(&mut Rig),
}

const CLUSTER: u32 = 0x0FFF_FFFF;
/// IA32_APIC_BASE of the BSP: present, and in x2APIC mode.
const PRESENT: u64 = 0xFEE0_0900;
const X2APIC: u64 = PRESENT | 1 << 10;

/// Those for which nothing but the hypervisor's word counts.
macro_rules! set_by_hypervisor {
    ($plain:expr, $inhibit:ident) => {
        Story {
            come: |rig| assert_eq!(rig.shared.inhibit(Inhibit::$inhibit).count(), 2),
            go: |rig| rig.shared.allow(Inhibit::$inhibit),
            ..$plain
        }
    };
}
/// One story an inhibit. A new one does not compile without.
fn story(inhibit: Inhibit) -> Story {
    let plain = Story { options: Options::vcpus(2), begin: |_| {}, come: |_| {}, go: |_| {} };
    match inhibit {
        Inhibit::Disabled => set_by_hypervisor!(plain, Disabled),
        Inhibit::PitReinjection => set_by_hypervisor!(plain, PitReinjection),
        Inhibit::SynicAutoEoi => set_by_hypervisor!(plain, SynicAutoEoi),
        Inhibit::Sev => set_by_hypervisor!(plain, Sev),
        Inhibit::BlockInterrupts => set_by_hypervisor!(plain, BlockInterrupts),
        Inhibit::Nested => set_by_hypervisor!(plain, Nested),
        Inhibit::InterruptWindow => Story {
            come: |rig| rig.vcpus[0].set_external_interrupt_window(true),
            go: |rig| rig.vcpus[0].set_external_interrupt_window(false),
            ..plain
        },
        Inhibit::Absent => Story {
            come: |rig| base(rig, PRESENT & !(1 << 11)),
            go: |rig| base(rig, PRESENT),
            ..plain
        },
        Inhibit::BaseMoved => Story {
            come: |rig| base(rig, PRESENT - 0x10_0000),
            go: |rig| base(rig, PRESENT),
            ..plain
        },
        Inhibit::X2ApicUnsupported => Story {
            options: Options { wanted: Wanted::ALL.without(Feature::X2Avic), ..Options::vcpus(1) },
            come: |rig| base(rig, X2APIC),
            go: from_x2apic_to_xapic,
            ..plain
        },
        Inhibit::IdTooLarge => Story {
            options: Options { ids: [0, 256].to_vec(), ..Options::vcpus(0) },
            begin: x2apic_alone,
            come: from_x2apic_to_xapic,
            go: |rig| base(rig, X2APIC),
        },
        Inhibit::Id255 => Story {
            options: Options { ids: [0, 255].to_vec(), host: trusting(true), ..Options::vcpus(0) },
            begin: x2apic_alone,
            come: |rig| configure(rig, trusting(false)),
            go: |rig| configure(rig, trusting(true)),
        },
        Inhibit::IdModified => Story {
            options: Options {
                profile: Profile::amd().with_writable_xapic_id(true),
                ..Options::vcpus(2)
            },
            come: |rig| rig.page(1).write(Register::Id, 9 << 24),
            go: |rig| rig.page(1).write(Register::Id, 1 << 24),
            ..plain
        },
        Inhibit::MixedModes => Story {
            begin: x2apic_alone,
            come: |rig| rig.enable(1),
            go: |rig| rig.page(1).write(Register::Svr, 0xFF),
            ..plain
        },
        Inhibit::LogicalModel => Story {
            begin: |rig| rig.page(0).write(Register::Svr, 0xFF),
            come: |rig| rig.page(0).write(Register::Dfr, CLUSTER),
            go: |rig| rig.page(0).write(Register::Dfr, u32::MAX),
            ..plain
        },
        Inhibit::InterruptEnableRegisters => Story {
            come: |rig| rig.page(0).write(Register::ExtendedControl, 1),
            go: |rig| rig.page(0).write(Register::ExtendedControl, 0),
            ..plain
        },
        Inhibit::LogicalIds => Story {
            come: |rig| rig.page(1).write(Register::Ldr, 1 << 24),
            go: |rig| rig.page(1).write(Register::Ldr, 2 << 24),
            ..plain
        },
    }
}

/// The guest of vCPU 0 writes IA32_APIC_BASE.
fn base(rig: &mut Rig, value: u64) {
    assert!(rig.vcpus[0].apic_mut().write_msr(0x1B, value, 0).is_ok());
}

/// In x2APIC mode, with nobody else who accepts anything.
fn x2apic_alone(rig: &mut Rig) {
    rig.page(1).write(Register::Svr, 0xFF);
    base(rig, X2APIC);
}

/// By way of no mode at all, which resets the APIC.
fn from_x2apic_to_xapic(rig: &mut Rig) {
    base(rig, PRESENT & !(1 << 11));
    base(rig, PRESENT);
    set_up(rig, 0);
}

fn trusting(entry_255: bool) -> Host {
    Host { trust: Trust { entry_255, ..Trust::NOTHING }, ..Host::new() }
}

fn configure(rig: &mut Rig, host: Host) {
    let (msr_permissions, window) = (rig.maps[0], rig.window);
    let resources = Resources { msr_permissions, window, private_asid: false, host };
    rig.vcpus[0].configure(&mut rig.vmcbs[0], &CAPS, Wanted::ALL, resources);
}

/// An enabled APIC with a logical ID of its own.
fn set_up(rig: &Rig, index: usize) {
    rig.enable(index);
    rig.page(index).write(Register::Ldr, 1 << (24 + index));
}

/// The other vCPU goes through its entry work, then vCPU 0: its face, and what was injected into it.
fn enter(rig: &mut Rig) -> (Face, Option<u8>) {
    for index in (1..rig.vcpus.len()).rev() {
        rig.enter(index);
    }
    for _ in 0..4 {
        let entry = rig.entry(0, INPUT);
        match entry.next {
            Next::UnmapWindow => rig.window.unmapped(),
            Next::KickOthers => {}
            _ => return (Face::of(&rig.vmcbs[0]), entry.injected.map(|vector| vector.get())),
        }
    }
    panic!("no way in");
}

fn words(rig: &Rig) -> Vec<u32> {
    (0..0x1000).step_by(4).map(|offset| rig.page(0).load(offset)).collect()
}

/// On; the inhibit, with a post just before it is noticed, and off; it goes, and on again with the page as it was.
#[test]
fn every_inhibit_and_its_way_back() {
    for &inhibit in Inhibit::ALL {
        let Story { options, begin, come, go } = story(inhibit);
        let mut rig = options.build();
        (0..rig.vcpus.len()).for_each(|index| set_up(&rig, index));
        begin(&mut rig);
        let (face, _) = enter(&mut rig);
        assert_ne!(face, Face::Emulated, "{inhibit}");
        assert!(rig.vcpus[0].inhibits().is_empty(), "{inhibit}: {:?}", rig.vcpus[0].inhibits());
        assert!(rig.running(0).is_some(), "{inhibit}");

        come(&mut rig);
        let accepts = rig.slot(0).accepts();
        let _ = rig.slot(0).request(0x41, Trigger::Edge);
        let (face, injected) = enter(&mut rig);
        let found = rig.vcpus[0].inhibits();
        assert!(found.contains(inhibit), "{inhibit}: {found:?}");
        // Both modes at once leave no logical table either.
        let expected = |other| other == inhibit || other == Inhibit::LogicalIds;
        assert!(found.iter().all(expected), "{inhibit}: {found:?}");
        if inhibit == Inhibit::LogicalIds {
            assert_ne!(face, Face::Emulated, "{inhibit}: logical IPIs exit, and that is all");
            assert_eq!(rig.logical(0), None);
            assert!(rig.page(0).irr().highest().is_some(), "{inhibit}: for VMRUN to find");
        } else {
            assert_eq!(face, Face::Emulated, "{inhibit}");
            assert_eq!(rig.running(0), None, "{inhibit}");
            assert_eq!(injected, accepts.then_some(0x41), "{inhibit}: nothing is lost");
        }
        // It stays for as long as its cause.
        let (face, _) = enter(&mut rig);
        assert_eq!(face == Face::Emulated, inhibit != Inhibit::LogicalIds, "{inhibit}");

        go(&mut rig);
        let priority = u32::from(rig.slot(0).processor_priority());
        rig.page(0).write(Register::Ppr, priority);
        let before = words(&rig);
        let (face, _) = enter(&mut rig);
        assert_ne!(face, Face::Emulated, "{inhibit}");
        assert!(rig.vcpus[0].inhibits().is_empty(), "{inhibit}: {:?}", rig.vcpus[0].inhibits());
        assert!(rig.running(0).is_some(), "{inhibit}");
        assert_eq!(words(&rig), before, "{inhibit}: the page is carried over unchanged");
    }
}
