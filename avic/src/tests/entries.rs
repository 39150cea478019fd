use vlapic_core::{EntryInput, Inbox, Next, Notify, Register, Trigger, Vector};

use super::{CAPS, INPUT, Options, address};
use crate::{Capabilities, Face, Feature, Host, Trust, Vmcb, Wanted, Whereabouts, check};

#[test]
fn xavic_fills_the_vmcb() {
    let mut rig = Options::vcpus(2).build();
    assert_eq!(rig.enter(0), Face::XAvic);
    let vmcb = &rig.vmcbs[0];
    assert_eq!(vmcb.load(0x060), 0x8100_0000);
    assert_eq!(vmcb.load(0x098), 0xFEE0_0000);
    assert_eq!(vmcb.load(0x0E0), address(rig.page(0)).unwrap().as_u64());
    assert_eq!(vmcb.load(0x0F0), rig.shared.logical().address().as_u64());
    assert_eq!(vmcb.load(0x0F8), rig.shared.physical().address().as_u64() | 0xFE);
    assert_eq!(vmcb.load(0x058) >> 32, 3, "translations flushed");
    assert_eq!(check(vmcb, &CAPS), Ok(()));
    assert!(rig.maps[0].intercepts_read(0x808));
}

#[test]
fn x2avic_fills_the_vmcb() {
    for (pages, extended, max_index) in
        [(1, true, 0x1FF), (8, true, 0xFFF), (8, false, 0x1FF), (2, true, 0x3FF)]
    {
        let caps = Capabilities { x2avic_extended: extended, ..CAPS };
        let mut rig = Options { table_pages: pages, caps, ..Options::vcpus(1) }.build();
        rig.enter_x2apic(0);
        assert_eq!(rig.enter(0), Face::X2Avic);
        let vmcb = &rig.vmcbs[0];
        assert_eq!(vmcb.load(0x060), 0xC100_0000);
        assert_eq!(vmcb.load(0x0F8) & 0xFFF, max_index);
        assert_eq!(check(vmcb, &caps), Ok(()));
        assert!(!rig.maps[0].intercepts_read(0x808) && !rig.maps[0].intercepts_write(0x830));
    }
}

#[test]
fn each_change_of_face_flushes_and_soils() {
    let mut rig = Options::vcpus(1).build();
    let faces = |rig: &mut super::Rig, expected| {
        rig.vmcbs[0].store(0x0C0, 0xFFF);
        rig.vmcbs[0].store(0x058, 5);
        assert_eq!(rig.enter(0), expected);
        assert_eq!(rig.vmcbs[0].load(0x0C0), 0);
        assert_eq!(rig.vmcbs[0].load(0x058), 3 << 32 | 5);
        let _ = rig.exit(0, 0x60, 0, 0);
        assert_eq!(rig.vmcbs[0].load(0x058), 5);
    };
    faces(&mut rig, Face::XAvic);
    rig.enter_x2apic(0);
    faces(&mut rig, Face::X2Avic);
    assert!(!rig.maps[0].intercepts_write(0x808));
    let off = rig.slot(0).base().bits() & !(3 << 10);
    assert!(rig.vcpus[0].apic_mut().write_msr(0x1B, off, 0).is_ok());
    faces(&mut rig, Face::Emulated);
    assert!(rig.maps[0].intercepts_write(0x808));
    assert!(rig.vcpus[0].apic_mut().write_msr(0x1B, off | 1 << 11, 0).is_ok());
    faces(&mut rig, Face::XAvic);
    // The next entry on the same CPU changes nothing.
    rig.vmcbs[0].store(0x0C0, 0xFFF);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!((rig.vmcbs[0].load(0x0C0), rig.vmcbs[0].load(0x058)), (0xFFF, 5));
}

#[test]
fn coming_to_a_cpu_flushes_in_xapic_mode() {
    let mut rig = Options::vcpus(1).build();
    let enter = |rig: &mut super::Rig, cpu| {
        let input = EntryInput { cpu, ..INPUT };
        let _ = rig.entry(0, input);
        let control = rig.vmcbs[0].load(0x058) >> 32;
        let _ = rig.exit(0, 0x60, 0, 0);
        control
    };
    assert_eq!(enter(&mut rig, 1), 3);
    assert_eq!(enter(&mut rig, 1), 0);
    assert_eq!(enter(&mut rig, 2), 3, "migrated");
    rig.vcpus[0].preempt();
    assert_eq!(enter(&mut rig, 2), 3, "another vCPU may have run here");
    rig.enter_x2apic(0);
    assert_eq!(enter(&mut rig, 2), 3, "another face");
    rig.vcpus[0].preempt();
    assert_eq!(enter(&mut rig, 3), 0, "x2AVIC has no window");
}

#[test]
fn a_stronger_flush_of_the_hypervisor_stays() {
    let mut rig = Options::vcpus(1).build();
    rig.vmcbs[0].store(0x058, 1 << 32 | 5);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.vmcbs[0].load(0x058), 1 << 32 | 5);
    rig.vmcbs[0].store(0x058, 7 << 32 | 5);
    rig.vcpus[0].preempt();
    rig.enter(0);
    assert_eq!(rig.vmcbs[0].load(0x058), 3 << 32 | 5, "the window may be global");
}

#[test]
fn posts_to_every_state() {
    let mut rig = Options::vcpus(1).build();
    rig.enable(0);
    let slot = rig.slot(0);
    let mut vector = 0x30;
    let mut post = || {
        vector += 1;
        slot.request(vector, Trigger::Edge).notify
    };
    assert_eq!(post(), Notify::None, "never run");
    rig.enter(0);
    assert_eq!(rig.running(0), Some(0x10));
    assert_eq!(post(), Notify::Doorbell { destination: 0x10 });
    rig.vcpus[0].preempt();
    assert_eq!(rig.running(0), None);
    assert_eq!(post(), Notify::None);
    assert!(!rig.vcpus[0].block(INPUT), "something waits");
    assert_eq!(rig.running(0), None);
    assert_eq!(post(), Notify::Wake);
    let asleep = EntryInput { interruptible: false, ..INPUT };
    assert!(rig.vcpus[0].block(asleep), "RFLAGS.IF is clear");
    rig.enter(0);
    rig.vcpus[0].set_external_interrupt_window(true);
    rig.enter(0);
    assert_eq!(post(), Notify::Kick);
    assert_eq!(rig.running(0), None);
}

#[test]
fn without_is_running_the_doorbell_still_rings() {
    let caps = Capabilities { erratum_1235: true, ..CAPS };
    let mut rig = Options { caps, ..Options::vcpus(1) }.build();
    rig.enable(0);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.running(0), None);
    let doorbell = Notify::Doorbell { destination: 0x10 };
    assert_eq!(rig.slot(0).request(0x41, Trigger::Edge).notify, doorbell);
    assert_eq!(rig.slot(0).inbox().announce(), doorbell, "a sender's exit 401");
}

#[test]
fn without_a_doorbell_posts_kick() {
    let host = Host { doorbell: false, ..Host::new() };
    let mut rig = Options { host, ..Options::vcpus(1) }.build();
    rig.enable(0);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.running(0), Some(0x10), "hardware rings by itself");
    assert_eq!(rig.slot(0).request(0x41, Trigger::Edge).notify, Notify::Kick);
}

#[test]
fn host_ids_beyond_the_doorbell() {
    for (wide, cpu, reached) in
        [(false, 0xFF, true), (false, 0x100, false), (true, 0xFFF, true), (true, 0x1000, false)]
    {
        let trust = Trust { wide_doorbell: wide, ..Trust::NOTHING };
        let host = Host { trust, ..Host::new() };
        let mut rig = Options { host, ..Options::vcpus(1) }.build();
        let input = EntryInput { cpu, ..INPUT };
        let _ = rig.entry(0, input);
        let whereabouts = rig.slot(0).inbox().whereabouts();
        if reached {
            assert_eq!(rig.running(0), Some(cpu as u16));
            assert_eq!(whereabouts, Whereabouts::Doorbell(cpu));
        } else {
            assert_eq!((rig.running(0), whereabouts), (None, Whereabouts::Kick(cpu)));
        }
    }
}

#[test]
fn tpr_and_v_tpr_follow_each_other() {
    let mut rig = Options::vcpus(1).build();
    rig.page(0).write(Register::Tpr, 0x57);
    rig.enter(0);
    assert_eq!(rig.vmcbs[0].load(0x060) & 0xFF, 5);
    assert_eq!(rig.page(0).read(Register::Ppr), 0x57);
    let _ = rig.exit(0, 0x60, 0, 0);
    assert_eq!(rig.page(0).read(Register::Tpr), 0x57, "sub-class kept");

    let control = rig.vmcbs[0].load(0x060) & !0xFF | 0x9;
    rig.vmcbs[0].store(0x060, control);
    let _ = rig.exit(0, 0x60, 0, 0);
    assert_eq!(rig.page(0).read(Register::Tpr), 0x90, "MOV to CR8");
    assert_eq!(rig.page(0).read(Register::Ppr), 0x90);
    assert_eq!(rig.vcpus[0].apic().read_cr8(), 9);

    rig.page(0).isr().insert_owned(Vector::new(0xA1).unwrap());
    rig.enter(0);
    assert_eq!(rig.page(0).read(Register::Ppr), 0xA0);
}

#[test]
fn emulated_entries_inject() {
    let mut rig = Options { wanted: Wanted::NONE, ..Options::vcpus(1) }.build();
    rig.enable(0);
    let slot = rig.slot(0);
    for vector in [0x41, 0x92] {
        assert_eq!(slot.request(vector, Trigger::Edge).notify, Notify::None);
    }
    let blocked = EntryInput { interruptible: false, ..INPUT };
    let entry = rig.entry(0, blocked);
    assert_eq!(entry.injected, None);
    assert_eq!(rig.vmcbs[0].load(0x060), 0x0110_0100, "V_IRQ, V_IGN_TPR");
    assert_eq!(rig.vmcbs[0].load(0x008), 1 << 36, "VINTR intercept");
    assert_eq!(rig.vmcbs[0].load(0x0A8), 0);

    let entry = rig.entry(0, INPUT);
    assert_eq!(entry.injected, Vector::new(0x92));
    assert_eq!(rig.vmcbs[0].load(0x0A8), 1 << 31 | 0x92);
    assert_eq!((rig.vmcbs[0].load(0x060), rig.vmcbs[0].load(0x008)), (0x0100_0000, 0));
    let again = rig.entry(0, INPUT);
    assert_eq!(again.injected, None, "one at a time");
    assert_eq!(rig.vmcbs[0].load(0x0A8), 1 << 31 | 0x92);

    // Delivered; the handler lowers nothing, then TPR holds the other one back.
    rig.vmcbs[0].store(0x0A8, 0);
    rig.page(0).write(Register::Tpr, 0x50);
    let _ = rig.vcpus[0].apic_mut().end_of_interrupt();
    rig.vmcbs[0].store(0x060, 0x0100_0005);
    let entry = rig.entry(0, INPUT);
    assert_eq!(entry.injected, None);
    assert_eq!(rig.vmcbs[0].load(0x000), 1 << 24, "CR8 writes exit");
    assert!(rig.vcpus[0].apic_mut().write_cr8(3, 0).is_ok());
    let entry = rig.entry(0, INPUT);
    assert_eq!(entry.injected, Vector::new(0x41));
    assert_eq!(rig.vmcbs[0].load(0x000), 0);
}

#[test]
fn nothing_is_injected_beside_another_event() {
    let mut rig = Options { wanted: Wanted::NONE, ..Options::vcpus(1) }.build();
    rig.enable(0);
    let _ = rig.slot(0).request(0x41, Trigger::Edge);
    rig.vmcbs[0].store(0x0A8, 1 << 31 | 2 << 8 | 2);
    let entry = rig.entry(0, INPUT);
    assert_eq!(entry.injected, None);
    assert_eq!(rig.vmcbs[0].load(0x0A8), 1 << 31 | 2 << 8 | 2, "the hypervisor's NMI");
    assert_eq!(rig.vmcbs[0].load(0x008), 1 << 36);

    rig.vmcbs[0].store(0x0A8, 0);
    let _ = rig.slot(0).receive(vlapic_core::Delivery::Nmi);
    let entry = rig.entry(0, INPUT);
    assert_eq!((entry.next, entry.injected), (Next::TakeEvent, None));
    let injecting = rig.entry(0, EntryInput { injecting: true, now: 700, ..INPUT });
    assert_eq!((injecting.next, injecting.injected), (Next::Enter, None), "after what is injected");
    assert_eq!(injecting.exit_by, Some(700), "at once, that is");
    rig.vmcbs[0].store(0x0A8, 1 << 31 | 0x31);
    assert_eq!(rig.entry(0, INPUT).next, Next::Enter, "what is in the VMCB counts too");
}

#[test]
fn avic_takes_back_what_injection_left() {
    let mut rig = Options::vcpus(1).build();
    rig.enable(0);
    rig.vcpus[0].set_external_interrupt_window(true);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert_eq!(rig.vmcbs[0].load(0x008), 1 << 36);
    rig.vcpus[0].set_external_interrupt_window(false);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.vmcbs[0].load(0x008), 0);
    assert_eq!(rig.vmcbs[0].load(0x060), 0x8100_0000);
}

#[test]
fn the_window_is_unmapped_before_emulation() {
    let mut rig = Options::vcpus(2).build();
    assert_eq!(rig.enter(0), Face::XAvic);
    assert!(rig.window.map());
    rig.vcpus[1].set_external_interrupt_window(true);
    let refused = rig.entry(1, INPUT).next;
    assert_eq!(refused, Next::UnmapWindow);
    let again = rig.entry(1, INPUT).next;
    assert_eq!(again, Next::UnmapWindow, "until it is done");
    rig.window.unmapped();
    assert_eq!(rig.entry(1, INPUT).next, Next::AwaitStartup);
    assert!(!rig.window.map(), "vCPU 1 objects");
    assert_eq!(rig.enter(0), Face::XAvic, "vCPU 0 keeps AVIC, its accesses fault");
    rig.vcpus[1].set_external_interrupt_window(false);
    rig.enter(1);
    assert!(rig.window.map());
    rig.enter_x2apic(1);
    let refused = rig.entry(1, INPUT).next;
    assert_eq!(refused, Next::UnmapWindow, "there is no window in x2APIC mode");
    drop(rig.vcpus.pop());
    rig.window.unmapped();
    assert!(rig.window.map(), "a vCPU that is gone objects to nothing");
}

#[test]
fn virtual_nmis_are_pended() {
    let caps = Capabilities { vnmi: true, ..CAPS };
    let mut rig = Options { caps, ..Options::vcpus(1) }.build();
    assert!(rig.vcpus[0].features().contains(Feature::VirtualNmi));
    assert!(rig.vcpus[0].pend_nmi(&mut rig.vmcbs[0]));
    rig.enter(0);
    assert_eq!(rig.vmcbs[0].load(0x060), 0x8500_0800);

    let mut rig = Options::vcpus(1).build();
    assert!(!rig.vcpus[0].pend_nmi(&mut rig.vmcbs[0]));
    assert_eq!(rig.vmcbs[0].load(0x060) & 0x800, 0);
}

#[test]
fn a_fresh_vmcb_is_programmed_anew() {
    let mut rig = Options::vcpus(1).build();
    rig.enter(0);
    let mut other = crate::VmcbPage::new();
    other.store(0x060, 0x0100_0000);
    other.store(0x090, 1);
    let _ = rig.vcpus[0].before_entry(&mut other, INPUT).unwrap();
    for offset in [0x060, 0x098, 0x0E0, 0x0F0, 0x0F8] {
        assert_eq!(other.load(offset), rig.vmcbs[0].load(offset), "{offset:#x}");
    }
}

#[test]
fn memory_without_an_address_makes_no_tables() {
    use vlapic_core::{ApicPage, Profile, Slot, Vm};
    use vlapic_hal::fake::VirtualIsPhysical;
    use vlapic_hal::wrap::{Fault, FaultInjector, When};

    use crate::{Backing, LogicalPage, PhysicalPage, Shared, Storage, TableError};

    let page = std::boxed::Box::new(ApicPage::new());
    let slots = [Slot::new(&page, 0, Profile::amd(), Backing::new())];
    let (physical, logical) = ([PhysicalPage::new()], LogicalPage::new());
    let storage = Storage { physical: &physical, logical: &logical, routes: &[] };
    // First page of the physical table, the same again, the logical table, the APIC page.
    for nth in 1..=4 {
        let translate = FaultInjector::new(VirtualIsPhysical, [(When::Nth(nth), Fault::NoAddress)]);
        let shared = Shared::new(Vm::new(&slots).unwrap(), storage, &translate);
        assert_eq!(shared.err(), Some(TableError::NoAddress), "{nth}");
        assert_eq!(translate.struck(), 1);
    }
    assert!(Shared::new(Vm::new(&slots).unwrap(), storage, &VirtualIsPhysical).is_ok());
}

#[test]
fn what_is_there_no_vcpu_for() {
    let rig = Options::vcpus(2).build();
    assert!(crate::Vcpu::new(rig.shared, 2, false).is_none());
}
