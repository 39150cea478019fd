use std::boxed::Box;

use vlapic_core::{
    Address, ApicPage, Delivery, Destination, Directory, Notify, Profile, Register, Slot,
    SvrWrites, Trigger, Vector, Vm,
};
use vlapic_hal::fake::VirtualIsPhysical;

use super::{CAPS, INPUT, Options};
use crate::{
    Backing, Capabilities, Face, Feature, Host, Inhibit, LogicalPage, MsrPermissions, PhysicalPage,
    Resources, Shared, Storage, Vcpu, Vmcb, Wanted, Whereabouts, Window,
};

fn resources(rig: &super::Rig, index: usize) -> Resources<'static> {
    let (msr_permissions, window) = (rig.maps[index], rig.window);
    Resources { msr_permissions, window, private_asid: false, host: Host::new() }
}

/// Less is granted than before: what hardware is told follows at the next entry, on the same CPU and with the same face.
#[test]
fn another_grant() {
    let mut rig = Options { table_pages: 8, ..Options::vcpus(2) }.build();
    rig.enter_x2apic(0);
    assert_eq!(rig.enter(0), Face::X2Avic);
    assert_eq!((rig.vmcbs[0].load(0x0F8) & 0xFFF, rig.running(0)), (0xFFF, Some(0x10)));

    let map: &'static MsrPermissions = Box::leak(Box::new(MsrPermissions::new()));
    let resources = Resources { msr_permissions: map, ..resources(&rig, 0) };
    let wanted = Wanted::ALL.without(Feature::ExtendedIds).without(Feature::IsRunning);
    rig.vcpus[0].configure(&mut rig.vmcbs[0], &CAPS, wanted, resources);
    assert_eq!(Face::of(&rig.vmcbs[0]), Face::Emulated, "until its next entry");
    assert!(map.intercepts_read(0x808));
    assert_eq!(rig.enter(0), Face::X2Avic);
    assert_eq!((rig.vmcbs[0].load(0x0F8) & 0xFFF, rig.running(0)), (0x1FF, None));
    assert!(!map.intercepts_read(0x808));

    let resources = Resources { msr_permissions: map, ..resources };
    rig.vcpus[0].configure(&mut rig.vmcbs[0], &CAPS, Wanted::NONE, resources);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(map.intercepts_read(0x808), "nothing reaches the physical APIC");
}

/// An objection goes with the window it was made against.
#[test]
fn another_window() {
    let other: &'static Window = Box::leak(Box::new(Window::new()));
    let mut rig = Options { wanted: Wanted::NONE, ..Options::vcpus(1) }.build();
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(!rig.window.map());
    let moved = Resources { window: other, ..resources(&rig, 0) };
    rig.vcpus[0].configure(&mut rig.vmcbs[0], &CAPS, Wanted::NONE, moved);
    assert!(rig.window.map(), "nobody uses it");
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(!other.map());
}

#[test]
fn a_vcpu_that_is_gone() {
    let mut rig = Options::vcpus(2).build();
    for index in 0..2 {
        rig.enable(index);
        assert_eq!(rig.enter(index), Face::XAvic);
    }
    let slot = rig.slot(1);
    drop(rig.vcpus.pop());
    assert_eq!(rig.running(1), None);
    assert_eq!(slot.inbox().whereabouts(), Whereabouts::Preempted);
    assert_eq!(slot.request(0x41, Trigger::Edge).notify, Notify::None);
}

/// A page that was replaced: the tables follow before another vCPU sends by them.
#[test]
fn a_replaced_state() {
    let mut rig = Options::vcpus(2).build();
    for index in 0..2 {
        rig.enable(index);
        rig.page(index).write(Register::Ldr, 1 << (24 + index));
        rig.enter(index);
    }
    rig.enter(0);
    assert_eq!(rig.logical(0x04), Some(1));
    rig.page(1).write(Register::Ldr, 0x8000_0000);
    rig.vcpus[1].state_replaced();
    assert_eq!((rig.logical(0x04), rig.logical(0x1C)), (None, Some(1)));
}

/// Any other event ends a sleep, or does not let it begin, whatever RFLAGS.IF is.
#[test]
fn no_sleep_with_an_event() {
    let mut rig = Options::vcpus(1).build();
    rig.enter(0);
    let closed = vlapic_core::EntryInput { interruptible: false, ..INPUT };
    assert!(rig.vcpus[0].block(closed));
    let _ = rig.slot(0).receive(Delivery::Nmi);
    assert!(!rig.vcpus[0].block(closed));
}

/// What is owed is looked at again if no exit tells of SVR.
#[test]
fn unseen_writes_of_svr() {
    let mut rig = Options::vcpus(1).build();
    let pending = std::sync::atomic::AtomicU8::new(0);
    let pending: &'static _ = Box::leak(Box::new(pending));
    rig.vcpus[0].apic_mut().bind_upcall(pending);
    let _ = rig.slot(0).register_upcall(0x51, pending);
    assert_eq!(rig.slot(0).notify_upcall(pending), Notify::Kick, "refused: APIC disabled");
    for (svr_writes, exit_by) in
        [(SvrWrites::Exit, None), (SvrWrites::Silent { recheck: 7 }, Some(7))]
    {
        rig.vcpus[0].set_svr_writes(svr_writes);
        assert_eq!(rig.vcpus[0].svr_writes(), svr_writes);
        assert_eq!(rig.entry(0, INPUT).exit_by, exit_by);
    }
}

/// A VM's directory does not count on what it knows of an APIC whose registers may change unseen.
#[test]
fn the_directory_is_told_of_unseen_writes() {
    let page: &'static ApicPage = Box::leak(Box::new(ApicPage::new()));
    let directory: &'static Directory = Box::leak(Box::new(Directory::new()));
    let slot = Slot::new(page, 0, Profile::amd(), Backing::new()).with_directory(directory);
    let slots: &'static [_] = std::vec::Vec::leak(std::vec![slot]);
    let storage = Storage {
        physical: std::vec::Vec::leak(std::vec![PhysicalPage::new()]),
        logical: Box::leak(Box::new(LogicalPage::new())),
        routes: &[],
    };
    let vm = Vm::new(slots).unwrap();
    let shared: &'static Shared<'static> =
        Box::leak(Box::new(Shared::new(vm, storage, &VirtualIsPhysical).unwrap()));
    let mut vcpu = Vcpu::new(shared, 0, true).unwrap();
    let destination = Destination::Logical(Address::Narrow(4));
    for (svr_writes, found) in
        [(SvrWrites::Exit, 0), (SvrWrites::Silent { recheck: 7 }, 1), (SvrWrites::Exit, 0)]
    {
        page.write(Register::Ldr, 1 << 24);
        vcpu.set_svr_writes(svr_writes);
        // A store that nobody was told of.
        page.write(Register::Ldr, 4 << 24);
        assert_eq!(vm.targets(destination, None).count(), found, "{svr_writes:?}");
    }
}

/// CR8 is intercepted while TPR alone is in the way, and never under AVIC.
#[test]
fn cr8_writes_exit_no_longer_than_they_have_to() {
    let vector = |vector| Vector::new(vector).unwrap();
    let mut rig = Options::vcpus(1).build();
    rig.enable(0);
    rig.vcpus[0].set_external_interrupt_window(true);
    rig.page(0).irr().insert(vector(0x41));
    for (in_service, tpr, intercepted) in
        [(0x31, 0x50, true), (0x61, 0x50, false), (0x41, 0x50, false), (0x61, 0x00, false)]
    {
        rig.page(0).isr().insert_owned(vector(in_service));
        rig.page(0).write(Register::Tpr, tpr);
        rig.enter(0);
        let expected = u64::from(intercepted) << 24;
        assert_eq!(rig.vmcbs[0].load(0x000), expected, "{in_service:#x} {tpr:#x}");
        rig.page(0).isr().remove_owned(vector(in_service));
    }
    rig.page(0).write(Register::Tpr, 0x50);
    rig.enter(0);
    assert_eq!(rig.vmcbs[0].load(0x000), 1 << 24);
    rig.vcpus[0].set_external_interrupt_window(false);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.vmcbs[0].load(0x000), 0);
}

/// A flush that the hypervisor has asked for after the entry work is not taken back with the driver's own.
#[test]
fn a_flush_that_came_later_stays() {
    let mut rig = Options::vcpus(1).build();
    rig.enter(0);
    rig.vmcbs[0].store(0x058, 1 << 32 | 5);
    let _ = rig.exit(0, 0x60, 0, 0);
    assert_eq!(rig.vmcbs[0].load(0x058), 1 << 32 | 5);
}

/// A guest of Intel's has no such registers, whatever is in its page.
#[test]
fn interrupt_enable_registers_that_are_none() {
    let mut rig = Options { profile: Profile::intel(), ..Options::vcpus(1) }.build();
    rig.page(0).write(Register::ExtendedControl, 1);
    assert_eq!(rig.enter(0), Face::XAvic);
}

/// In xAPIC mode 255 is beyond the table like any other, whatever is trusted.
#[test]
fn id_255_in_xapic_mode() {
    let caps = Capabilities { x2avic_extended: false, ..CAPS };
    let mut rig = Options { ids: std::vec![0, 255], caps, ..Options::vcpus(0) }.build();
    assert_eq!(rig.enter(0), Face::Emulated);
    let reasons: std::vec::Vec<_> = rig.vcpus[0].inhibits().iter().collect();
    assert_eq!(reasons, [Inhibit::IdTooLarge]);
}
