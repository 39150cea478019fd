//! What an entry need not look at again, and each word that it must.

use vlapic_core::{EntryInput, Inbox, Next, Notify, Profile, Register, SvrWrites, Trigger, Vector};

use super::{CAPS, INPUT, Options, Rig};
use crate::{
    Face, Feature, Host, Inhibit, MsrPermissions, Resources, Vmcb, VmcbPage, Wanted, Whereabouts,
};

/// Two vCPUs that accept, the first settled.
fn settled(profile: Profile, x2apic: bool) -> Rig {
    let mut rig = Options { profile, ..Options::vcpus(2) }.build();
    for index in [0, 1, 0, 1, 0] {
        if x2apic && !rig.slot(index).base().bits() & 1 << 10 != 0 {
            rig.enter_x2apic(index);
        }
        rig.enable(index);
        if !x2apic {
            rig.page(index).write(Register::Ldr, 1 << (24 + index));
        }
        rig.enter(index);
    }
    let face = if x2apic { Face::X2Avic } else { Face::XAvic };
    assert_eq!(Face::of(&rig.vmcbs[0]), face);
    assert!(is_settled(&rig, 0));
    rig
}

fn is_settled(rig: &Rig, index: usize) -> bool {
    rig.vcpus[index].settled_face(&rig.vmcbs[index]).is_some()
}

fn write_base(rig: &mut Rig, index: usize, change: impl Fn(u64) -> u64) {
    let base = change(rig.slot(index).base().bits());
    assert!(rig.vcpus[index].apic_mut().write_msr(0x1B, base, 0).is_ok());
}

#[test]
fn each_word_that_may_change_unsettles() {
    type Change = fn(&mut Rig);
    let everywhere: &[(&str, Change)] = &[
        ("an inhibit of the VM", |rig| {
            assert_eq!(rig.shared.inhibit(Inhibit::Nested).count(), 2);
        }),
        ("an inhibit of the vCPU", |rig| {
            assert_eq!(rig.slot(0).inbox().inhibit(Inhibit::Nested), Notify::Kick);
        }),
        ("another vCPU's addressing", |rig| {
            rig.page(1).write(Register::Svr, 0xFF);
            rig.enter(1);
        }),
        ("SVR", |rig| rig.page(0).write(Register::Svr, 0xFF)),
        ("IER", |rig| rig.page(0).write(Register::ExtendedControl, 1)),
        ("APIC_BASE.EN", |rig| write_base(rig, 0, |base| base & !(3 << 10))),
        ("the window's address", |rig| write_base(rig, 0, |base| base ^ 0x1000)),
        ("another VMCB", |rig| rig.vmcbs[0] = VmcbPage::new()),
        ("an interrupt window", |rig| rig.vcpus[0].set_external_interrupt_window(true)),
    ];
    let in_xapic_mode: &[(&str, Change)] = &[
        ("DFR", |rig| rig.page(0).write(Register::Dfr, 0x0FFF_FFFF)),
        ("LDR", |rig| rig.page(0).write(Register::Ldr, 1 << 31)),
        ("APIC ID", |rig| rig.page(0).write(Register::Id, 7 << 24)),
        ("x2APIC mode", |rig| {
            rig.enter_x2apic(0);
            rig.enable(0);
        }),
    ];
    let profile = Profile::amd().with_extended_space(true).with_writable_xapic_id(true);
    for x2apic in [false, true] {
        let more = if x2apic { &[] } else { in_xapic_mode };
        for (what, change) in everywhere.iter().chain(more) {
            let mut rig = settled(profile, x2apic);
            change(&mut rig);
            assert!(!is_settled(&rig, 0), "{what}, x2APIC: {x2apic}");
        }
    }
}

/// The word that an exit leaves in 060 is not the driver's alone.
#[test]
fn what_does_not_matter_leaves_it_settled() {
    let profile = Profile::amd().with_extended_space(true);
    for x2apic in [false, true] {
        let mut rig = settled(profile, x2apic);
        rig.page(0).write(Register::Tpr, 0x40);
        rig.page(0).irr().insert(Vector::LOWEST);
        rig.page(0).write(Register::ExtendedControl, 6);
        let control = rig.vmcbs[0].load(0x060) | 0x2000_0200 | 0x61 << 32;
        rig.vmcbs[0].store(0x060, control);
        let _ = rig.vcpus[1].block(INPUT);
        rig.vcpus[0].preempt();
        rig.vcpus[0].set_external_interrupt_window(false);
        assert!(is_settled(&rig, 0), "x2APIC: {x2apic}");
    }
}

/// A VMCB for emulation and an APIC that is not there agree, but do not make an accelerated vCPU.
#[test]
fn an_absent_apic_is_not_accelerated() {
    let mut rig = settled(Profile::amd(), false);
    write_base(&mut rig, 0, |base| base & !(1 << 11));
    rig.enable(0);
    rig.page(0).write(Register::Ldr, 1 << 24);
    rig.vmcbs[0] = VmcbPage::new();
    assert!(!is_settled(&rig, 0));
    assert_eq!(rig.enter(0), Face::Emulated);
    assert_eq!(rig.slot(0).inbox().whereabouts(), Whereabouts::Kick(0x10));
}

/// A settled vCPU is nevertheless asked where it is.
#[test]
fn coming_and_going_needs_no_settling() {
    let mut rig = settled(Profile::amd(), true);
    let doorbell = |destination| Notify::Doorbell { destination };
    let announce = |rig: &Rig| rig.slot(0).inbox().announce();
    for away in [false, true] {
        for cpu in [0x21, 0x20, 0x20] {
            if away {
                rig.vcpus[0].preempt();
                assert_eq!((rig.running(0), announce(&rig)), (None, Notify::None));
            }
            assert!(is_settled(&rig, 0));
            assert_eq!(rig.entry(0, EntryInput { cpu, ..INPUT }).next, Next::Enter);
            assert_eq!((rig.running(0), announce(&rig)), (Some(cpu as u16), doorbell(cpu)));
        }
    }
    assert!(rig.vcpus[0].block(INPUT));
    assert_eq!((rig.running(0), announce(&rig)), (None, Notify::Wake));
    // The number of no CPU in the word of a vCPU that is away is 0.
    assert_eq!(rig.entry(0, EntryInput { cpu: 0, ..INPUT }).next, Next::Enter);
    assert_eq!((rig.running(0), announce(&rig)), (Some(0), doorbell(0)));
}

/// What was granted anew counts from the next entry on, though the VMCB is as the last one needed it.
#[test]
fn another_grant_settles_anew() {
    let mut rig = settled(Profile::amd(), false);
    let map = std::boxed::Box::leak(std::boxed::Box::new(MsrPermissions::new()));
    let resources = Resources {
        msr_permissions: map,
        window: rig.window,
        private_asid: false,
        host: Host::new(),
    };
    let wanted = Wanted::ALL.without(Feature::IsRunning).without(Feature::Doorbell);
    let mut unused = VmcbPage::new();
    rig.vcpus[0].configure(&mut unused, &CAPS, wanted, resources);
    assert!(!is_settled(&rig, 0));
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.running(0), None);
    assert_eq!(rig.slot(0).request(0x41, Trigger::Edge).notify, Notify::Kick);
}

/// While something comes first nothing is settled, however the VMCB stands.
#[test]
fn what_comes_first_leaves_it_unsettled() {
    let profile = Profile::amd().with_writable_xapic_id(true);
    let mut rig = settled(profile, false);
    rig.page(0).write(Register::Id, 7 << 24);
    assert_eq!(rig.entry(0, INPUT).next, Next::KickOthers);
    assert!(!is_settled(&rig, 0));
    assert_eq!(rig.enter(0), Face::Emulated);

    let mut rig = settled(profile, false);
    assert!(rig.window.map());
    rig.enter_x2apic(0);
    rig.enable(0);
    while rig.entry(0, INPUT).next != Next::UnmapWindow {}
    assert!(!is_settled(&rig, 0));
    assert_eq!(rig.entry(0, INPUT).next, Next::UnmapWindow);
}

/// A reason that goes before the window was unmapped takes the objection to its mapping with it.
#[test]
fn a_reason_that_came_and_went_leaves_no_objection() {
    let mut rig = settled(Profile::amd(), false);
    assert!(rig.window.map());
    assert_eq!(rig.slot(0).inbox().inhibit(Inhibit::Nested), Notify::Kick);
    assert_eq!(rig.entry(0, INPUT).next, Next::UnmapWindow);
    rig.slot(0).inbox().allow(Inhibit::Nested);
    assert_eq!(rig.enter(0), Face::XAvic);
    rig.window.unmapped();
    assert!(rig.window.map());
}

/// A change of its own does not make the vCPU look twice.
#[test]
fn one_entry_settles() {
    let mut rig = settled(Profile::amd(), false);
    rig.page(0).write(Register::Ldr, 1 << 30);
    assert_eq!(rig.enter(0), Face::XAvic);
    assert!(is_settled(&rig, 0));
}

/// A hypervisor that runs nested guests has two VMCBs a vCPU.
#[test]
fn a_vmcb_left_accelerated_is_turned() {
    let mut rig = settled(Profile::amd(), true);
    let left = std::mem::take(&mut rig.vmcbs[0]);
    let _ = rig.shared.inhibit(Inhibit::Nested).count();
    assert_eq!(rig.enter(0), Face::Emulated);
    rig.vmcbs[0] = left;
    assert!(!is_settled(&rig, 0));
    assert_eq!(rig.enter(0), Face::Emulated);
}

/// An event goes after what is injected already, with AVIC as without.
#[test]
fn events_of_a_settled_vcpu_wait_for_an_injection() {
    let mut rig = settled(Profile::amd(), true);
    let _ = rig.slot(0).receive(vlapic_core::Delivery::Nmi);
    assert_eq!(rig.entry(0, INPUT).next, Next::TakeEvent);
    let injecting = EntryInput { injecting: true, ..INPUT };
    assert_eq!(rig.entry(0, injecting).next, Next::Enter);
    rig.vmcbs[0].store(0x0A8, 1 << 31 | 0x31);
    assert_eq!(rig.entry(0, INPUT).next, Next::Enter);
    assert!(is_settled(&rig, 0));
}

/// Whoever stores to TPR or ISR has PPR follow; of stores by a guest that nobody was told of, and of
/// those before AVIC is on, the entry makes good what it missed.
#[test]
fn ppr_follows_where_nobody_has_seen_to_it() {
    for (svr_writes, follows) in [
        (SvrWrites::Exit, false),
        (SvrWrites::Silent { recheck: 1 }, true),
        (SvrWrites::Interceptable, true),
    ] {
        let mut rig = settled(Profile::amd(), true);
        rig.vcpus[0].set_svr_writes(svr_writes);
        rig.enter(0);
        for vector in (16..=255).filter_map(Vector::new) {
            let page = rig.page(0);
            page.isr().insert_owned(vector);
            rig.enter(0);
            let class = if follows { vector.class() } else { 0 };
            assert_eq!(page.read(Register::Ppr), u32::from(class), "{svr_writes:?}");
            page.isr().remove_owned(vector);
            rig.enter(0);
            assert_eq!(page.read(Register::Ppr), 0);
        }
    }
    let mut rig = Options::vcpus(1).build();
    rig.page(0).isr().insert_owned(Vector::LOWEST);
    rig.enable(0);
    rig.enter(0);
    assert_eq!(rig.page(0).read(Register::Ppr), 0x10);
}

/// TPR changed by an access that the hypervisor has emulated.
#[test]
fn v_tpr_follows_a_settled_vcpu() {
    let mut rig = settled(Profile::amd(), true);
    assert!(rig.vcpus[0].apic_mut().write_msr(0x808, 0x57, 0).is_ok());
    rig.vmcbs[0].store(0x0C0, 0xFFF);
    rig.enter(0);
    assert_eq!(rig.vmcbs[0].load(0x060) & 0xFF, 5);
    assert_eq!(rig.vmcbs[0].load(0x0C0) & 0x808, 0);
    assert_eq!(rig.page(0).read(Register::Ppr), 0x57);
}

/// An emulated vCPU is asked at each entry, since what is against AVIC may go as it came.
#[test]
fn an_emulated_vcpu_is_never_settled() {
    let mut rig = settled(Profile::amd(), true);
    assert_eq!(rig.slot(0).inbox().inhibit(Inhibit::Nested), Notify::Kick);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(!is_settled(&rig, 0));
    rig.slot(0).inbox().allow(Inhibit::Nested);
    assert_eq!(rig.enter(0), Face::X2Avic);
    assert!(is_settled(&rig, 0));
}
