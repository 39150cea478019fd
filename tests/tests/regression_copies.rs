//! Named scenarios of something kept beside the page that says what the page says, and was wrong when the page had
//! changed: highest in service, how many in service, whether anything is requested, PPR, IDs. Here each is read.

use vlapic_core::state::STATE_LENGTH;
use vlapic_core::{
    Address, Delivery, Destination, Effect, Message, Mode, Outcome, Profile, RefusedUpcall,
    Register, Trigger, Vector,
};
use vlapic_tests::plain::{Plain, vm};

fn vector(raw: u8) -> Vector {
    Vector::new(raw).expect("a legal vector")
}

/// A page with these vectors in service and requested, as it comes from a saved state or from hardware.
fn filled(in_service: &[u8], requested: &[u8]) -> Plain {
    let plain = Plain::enabled(Profile::intel());
    let page = plain.slot.page();
    for &raw in in_service {
        page.isr().insert(vector(raw));
    }
    for &raw in requested {
        page.irr().insert(vector(raw));
    }
    plain
}

/// The stack of vectors in service is the page's ISR, in whatever order it was filled.
#[test]
fn isr_stack_import() {
    for order in [[0x31, 0x52, 0xa3], [0xa3, 0x31, 0x52], [0x52, 0xa3, 0x31]] {
        let mut plain = filled(&order, &[]);
        for left in [&[0x52, 0x31][..], &[0x31], &[]] {
            plain.set(Register::Eoi, 0);
            assert_eq!(plain.isr(), left);
        }
    }
}

/// PPR is that of the vectors in service from the first look on, not from the second.
#[test]
fn in_service_count_after_import() {
    let mut state = [0; STATE_LENGTH];
    filled(&[0x85], &[]).apic.export_state(0, &mut state);
    for in_service_before in [&[][..], &[0x42], &[0xc1]] {
        let mut plain = filled(in_service_before, &[]);
        let _ = plain.apic.import_state(0, &state).expect("a state of ours");
        assert_eq!(plain.read(Register::Ppr), 0x80);
        plain.set(Register::Eoi, 0);
        assert_eq!(plain.read(Register::Ppr), 0);
    }
}

/// The same where somebody, the guest or whoever maps its page, stores to ISR unseen.
#[test]
fn in_service_count_after_an_unseen_store() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.apic.set_unseen_writes(true);
    plain.slot.page().isr().insert(vector(0x85));
    assert_eq!(plain.read(Register::Ppr), 0x80);
    plain.slot.page().isr().remove(vector(0x85));
    assert_eq!(plain.read(Register::Ppr), 0);
}

/// Hardware has ended what was in service, and nobody was told: the next class is free.
#[test]
fn highest_in_service_after_hardware_eoi() {
    let mut plain = filled(&[0x85], &[0x61]);
    assert_eq!(plain.apic.nominate(), None);
    plain.slot.page().isr().remove(vector(0x85));
    assert_eq!(plain.apic.nominate(), Some(vector(0x61)));
    assert_eq!(plain.apic.acknowledge(), 0x61);
    plain.set(Register::Eoi, 0);
    assert_eq!(plain.isr(), []);
}

/// A request that got into IRR without any call is found.
#[test]
fn requested_after_import() {
    let plain = filled(&[], &[0x61]);
    assert_eq!(plain.apic.nominate(), Some(vector(0x61)));
    plain.slot.page().irr().remove(vector(0x61));
    assert_eq!(plain.apic.nominate(), None);
}

/// An upcall is refused while IA32_APIC_BASE.EN is clear; that bit alone comes back, SVR having been enabled before and
/// after. It is not SVR's handler that finds it.
#[test]
fn upcall_at_hardware_enable() {
    let mut plain = Plain::with(Profile::intel(), 0, true, RefusedUpcall::Owed);
    plain.enable();
    let pending = plain.pending;
    let _ = plain.slot.register_upcall(0xf3, pending).expect("a legal vector");
    plain.set_msr(0x1b, 0xfee0_0100);
    pending.store(1, std::sync::atomic::Ordering::SeqCst);
    let _ = plain.slot.notify_upcall(pending);
    plain.set_msr(0x1b, 0xfee0_0900);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [], "SVR is that of a reset APIC again");
    plain.enable();
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [0xf3]);
    assert_eq!(plain.apic.acknowledge(), 0xf3);
    let _ = plain.apic.prepare(0);
    assert_eq!(plain.irr(), [], "once");
}

/// ICR in x2APIC mode is one register of 64 bits. Its high half lies right behind the low one (Intel), or at ICR high's
/// place (AMD).
#[test]
fn icr_halves_in_x2apic_mode() {
    for (profile, high) in [(Profile::intel(), 0x304), (Profile::amd(), 0x310)] {
        let mut plain = Plain::x2apic(profile, 0);
        let sent = plain.wrmsr(0x830, 7 << 32 | 0x4041);
        assert!(matches!(sent, Ok(Effect::Ipi(_))));
        assert_eq!(plain.rdmsr(0x830), Ok(7 << 32 | 0x4041));
        let page = plain.slot.page();
        assert_eq!((page.load(0x300), page.load(high)), (0x4041, 7));
    }
}

/// The x2APIC ID is the slot's, whatever the page holds at the ID's place.
#[test]
fn x2apic_id_is_read_only() {
    let mut plain = Plain::x2apic(Profile::intel(), 0x123);
    assert!(plain.wrmsr(0x802, 5).is_err());
    plain.slot.page().store(0x20, 5);
    assert_eq!(plain.slot.x2apic_id(), 0x123);
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1, 2]);
    for vcpu in &mut vcpus {
        vcpu.enter_x2apic();
        vcpu.enable();
    }
    vcpus[1].slot.page().store(0x20, 2);
    let message = Message::new(
        Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge },
        Destination::Physical(Address::Wide(2)),
    );
    let hit: Vec<_> = vm.send(&message, None).map(|(index, _)| index).collect();
    assert_eq!(hit, [2]);
}

/// A map of destinations is right however late IDs, LDRs and modes change: each is asked at each message.
#[test]
fn destinations_after_changes() {
    let (vm, mut vcpus) = vm(Profile::intel(), &[0, 1, 2, 3]);
    let logical = |address| Destination::Logical(Address::Narrow(address));
    let hit = |destination| vm.targets(destination, None).collect::<Vec<_>>();
    for (index, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.enable();
        vcpu.set(Register::Ldr, 1 << (24 + index));
    }
    assert_eq!(hit(logical(0b0110)), [1, 2]);
    // With no call to anybody, as a processor stores it.
    vcpus[3].slot.page().write(Register::Ldr, 0b0010 << 24);
    assert_eq!(hit(logical(0b0110)), [1, 2, 3]);
    vcpus[1].slot.page().write(Register::Ldr, 0);
    assert_eq!(hit(logical(0b0110)), [2, 3]);
    assert_eq!(hit(logical(0x14)), [2]);
    vcpus[2].slot.page().write(Register::Dfr, 0x0fff_ffff);
    assert_eq!(hit(logical(0x14)), [0; 0], "of cluster 0, not 1");
    assert_eq!(hit(logical(0b0110)), [2, 3]);
    vcpus[3].set_msr(0x1b, 0xfee0_0000);
    assert_eq!(hit(logical(0b0110)), [2]);
    assert_eq!(vcpus[3].slot.mode(), Mode::Disabled);
    assert_eq!(vcpus[3].slot.request(0x41, Trigger::Edge).outcome, Outcome::Refused);
}

/// The vectors that a task priority holds back follow the page's TPR, whichever way it got there.
#[test]
fn task_priority_by_every_way() {
    let mut plain = filled(&[], &[0x61]);
    let ways: [fn(&mut Plain, u8); 3] = [
        |plain, class| plain.set(Register::Tpr, u32::from(class) << 4),
        |plain, class| {
            let _ = plain.apic.write_cr8(u64::from(class), 0);
        },
        |plain, class| plain.slot.page().write(Register::Tpr, u32::from(class) << 4),
    ];
    for way in ways {
        way(&mut plain, 6);
        assert_eq!((plain.apic.nominate(), plain.apic.read_cr8()), (None, 6));
        way(&mut plain, 5);
        assert_eq!((plain.apic.nominate(), plain.apic.read_cr8()), (Some(vector(0x61)), 5));
        assert_eq!(plain.read(Register::Ppr), 0x50);
    }
}
