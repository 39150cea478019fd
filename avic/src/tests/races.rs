use std::thread;

use vlapic_core::{Inbox, Notify, Register, Trigger};

use super::{INPUT, Options};
use crate::Face;

/// A post against a vCPU that goes to sleep: it is told, or it does not sleep.
#[test]
fn a_post_against_sleep() {
    let mut rig = Options::vcpus(1).build();
    rig.enable(0);
    let slot = rig.slot(0);
    for _ in 0..2000 {
        rig.enter(0);
        let vcpu = &mut rig.vcpus[0];
        let (slept, told) = thread::scope(|scope| {
            let post = scope.spawn(|| slot.request(0x41, Trigger::Edge).notify);
            let slept = vcpu.block(INPUT);
            (slept, post.join().unwrap())
        });
        assert!(!slept || told == Notify::Wake, "asleep, and {told:?}");
        let vector = rig.vcpus[0].apic().nominate().unwrap();
        assert!(rig.vcpus[0].apic_mut().commit(vector));
        let _ = rig.vcpus[0].apic_mut().end_of_interrupt();
    }
}

/// Two vCPUs that take one logical ID at the same time: none has an entry that leaves out the
/// other.
#[test]
fn two_for_one_logical_id() {
    let rig = Options::vcpus(2).build();
    let (shared, page_0, page_1) = (rig.shared, rig.page(0), rig.page(1));
    rig.enable(0);
    rig.enable(1);
    let [mut vcpu_0, mut vcpu_1] = <[_; 2]>::try_from(rig.vcpus).ok().unwrap();
    let [mut vmcb_0, mut vmcb_1] = <[_; 2]>::try_from(rig.vmcbs).ok().unwrap();
    for _ in 0..1000 {
        for (page, ldr) in [(page_0, 0x1000_0000), (page_1, 0x2000_0000)] {
            page.write(Register::Ldr, ldr);
        }
        for _ in 0..2 {
            let _ = vcpu_0.before_entry(&mut vmcb_0, INPUT);
            let _ = vcpu_1.before_entry(&mut vmcb_1, INPUT);
        }
        assert_eq!(shared.logical().entry(0x10).guest_apic_id(), Some(0));
        assert_eq!(shared.logical().entry(0x14).guest_apic_id(), Some(1));
        thread::scope(|scope| {
            scope.spawn(|| {
                page_0.write(Register::Ldr, 0x0400_0000);
                let _ = vcpu_0.before_entry(&mut vmcb_0, INPUT);
            });
            page_1.write(Register::Ldr, 0x0400_0000);
            let _ = vcpu_1.before_entry(&mut vmcb_1, INPUT);
        });
        assert_eq!(shared.logical().entry(0x08).guest_apic_id(), None);
    }
}

/// Posts while acceleration goes on and off: each is told in a way that makes its target look.
#[test]
fn posts_against_inhibits() {
    let mut rig = Options::vcpus(1).build();
    rig.enable(0);
    let slot = rig.slot(0);
    for round in 0..2000u32 {
        let accelerated = round % 2 == 0;
        let vcpu = &mut rig.vcpus[0];
        let vmcb = &mut rig.vmcbs[0];
        vcpu.set_external_interrupt_window(!accelerated);
        let told = thread::scope(|scope| {
            let post = scope.spawn(|| slot.request(0x41, Trigger::Edge).notify);
            let entry = vcpu.before_entry(vmcb, INPUT).unwrap();
            let told = post.join().unwrap();
            let seen = entry.injected.is_some();
            // In guest mode: with AVIC VMRUN or the doorbell look, without it the kick does.
            assert!(Face::of(vmcb) != Face::Emulated || seen || told == Notify::Kick);
            told
        });
        assert!(matches!(told, Notify::Kick | Notify::None | Notify::Doorbell { .. }));
        if let Some(vector) = rig.vcpus[0].apic().nominate() {
            rig.vcpus[0].apic_mut().commit(vector);
        }
        let _ = rig.vcpus[0].apic_mut().end_of_interrupt();
        rig.vmcbs[0] = fresh();
        rig.vcpus[0].preempt();
        assert_eq!(slot.inbox().announce(), Notify::None);
    }
}

fn fresh() -> crate::VmcbPage {
    use crate::Vmcb;
    let mut vmcb = crate::VmcbPage::new();
    vmcb.store(0x060, 0x0100_0000);
    vmcb.store(0x090, 1);
    vmcb
}
