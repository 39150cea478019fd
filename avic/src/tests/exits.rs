use std::vec::Vec;

use vlapic_core::{
    AccessKind, Address, Delivery, Destination, Effect, ExitOutcome, Message, Notify, Register,
    SvrWrites, Trigger, Vector, WindowAccess,
};

use super::{CAPS, Options, Rig};
use crate::Capabilities;

const IPI: u64 = 0x401;
const ACCESS: u64 = 0x402;
const WRITE: u64 = 1 << 32;

fn rig() -> Rig {
    let mut rig = Options::vcpus(8).build();
    for index in 0..8 {
        rig.enable(index);
        rig.enter(index);
    }
    rig
}

/// What hardware does of an ICR write before it exits.
fn icr(rig: &Rig, high: u32, low: u32) -> u64 {
    rig.page(0).write(Register::IcrHigh, high);
    rig.page(0).write(Register::IcrLow, low | 1 << 12);
    u64::from(high) << 32 | u64::from(low | 1 << 12)
}

fn fixed(destination: Destination) -> Message {
    Message::new(Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }, destination)
}

#[test]
fn a_target_that_does_not_run_is_told_and_nothing_sent_again() {
    let mut rig = rig();
    rig.vcpus[7].preempt();
    let info = icr(&rig, 7 << 24, 0x41);
    let outcome = rig.exit(0, IPI, info, 1 << 32 | 7);
    let destination = Destination::Physical(Address::Narrow(7));
    assert_eq!(outcome, ExitOutcome::Done(Effect::Announce(fixed(destination))));
    assert_eq!(rig.page(0).read(Register::IcrLow), 0x41, "delivery status cleared");
    assert!(rig.page(7).irr().is_empty(), "hardware sets IRR, nobody else");

    let told: Vec<_> = rig.shared.vm().announce(destination, Some(0)).collect();
    assert_eq!(told, [(7, Notify::None)], "preempted: its next entry looks");
    assert!(rig.vcpus[7].block(super::INPUT));
    let told: Vec<_> = rig.shared.vm().announce(destination, Some(0)).collect();
    assert_eq!(told, [(7, Notify::Wake)]);
    let told: Vec<_> = rig.shared.vm().announce(Destination::AllButSelf, Some(0)).collect();
    assert_eq!(told.len(), 7);
    assert_eq!(told[0], (1, Notify::Doorbell { destination: 0x11 }), "harmless if it runs");
}

/// The sender is not on its way anywhere: what it has sent to itself its next entry finds.
#[test]
fn nobody_is_told_of_an_ipi_to_its_sender() {
    let mut rig = rig();
    let info = icr(&rig, 0, 1 << 18 | 0x41);
    assert_eq!(rig.exit(0, IPI, info, 1 << 32), ExitOutcome::Done(Effect::None));
}

#[test]
fn ids_that_are_emulated() {
    let to_3 = Destination::Physical(Address::Narrow(3));
    for (id, low, delivery) in [
        (0, 0x0400, Delivery::Nmi),
        (0, 0xC441, Delivery::Nmi),
        (0, 0xC041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Level }),
        (0, 0x4500, Delivery::Init),
        (0, 0x4612, Delivery::Startup { page: 0x12 }),
        (0, 0x0141, Delivery::LowestPriority { vector: 0x41, trigger: Trigger::Edge }),
        (2, 0x0041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }),
        (3, 0x0041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }),
        // Where the vector is looked at first.
        (4, 0x0402, Delivery::Nmi),
        (4, 0x4500, Delivery::Init),
        (4, 0x4608, Delivery::Startup { page: 8 }),
        (5, 0x0041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }),
        (77, 0x0041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge }),
    ] {
        let mut rig = rig();
        let info = icr(&rig, 3 << 24, low);
        let message = Message::new(delivery, to_3);
        let outcome = rig.exit(0, IPI, info, id << 32 | 3);
        assert_eq!(outcome, ExitOutcome::Done(Effect::Ipi(message)), "id {id}, {low:#x}");
        assert_eq!(rig.page(0).read(Register::IcrLow), low);
    }
}

#[test]
fn an_illegal_vector_is_an_error_and_ends_there() {
    let mut rig = rig();
    // The ICR in the page is an older one: this was SELF IPI.
    icr(&rig, 3 << 24, 0x41);
    let outcome = rig.exit(0, IPI, 0x4_000F, 4 << 32);
    assert_eq!(outcome, ExitOutcome::Done(Effect::None));
    assert_eq!(rig.page(0).read(Register::IcrLow), 0x41, "delivery status cleared");
    let esr = ACCESS;
    assert_eq!(rig.exit(0, esr, WRITE | 0x280, 0), ExitOutcome::Done(Effect::None));
    assert_eq!(rig.page(0).read(Register::Esr), 1 << 5);
}

#[test]
fn x2apic_destinations_are_wide() {
    let mut rig = rig();
    for index in 0..8 {
        rig.enter_x2apic(index);
        rig.enter(index);
    }
    let info = icr(&rig, 7, 0x41);
    let outcome = rig.exit(0, IPI, info, 1 << 32 | 7);
    let destination = Destination::Physical(Address::Wide(7));
    assert_eq!(outcome, ExitOutcome::Done(Effect::Announce(fixed(destination))));
    let info = icr(&rig, 0x0001_0003, 0x841);
    let outcome = rig.exit(0, IPI, info, 2 << 32 | 0x10);
    let message = Message::new(
        Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge },
        Destination::Logical(Address::Wide(0x0001_0003)),
    );
    assert_eq!(outcome, ExitOutcome::Done(Effect::Ipi(message)));
}

/// Which writes are traps: APM Vol. 2 Table 15-22, and the two that the processor carries out itself where it can. The
/// four entries of the extended LVT only where the processor says that it knows them.
const TRAPS: [u16; 17] = [
    0x020, 0x080, 0x0B0, 0x0C0, 0x0D0, 0x0E0, 0x0F0, 0x280, 0x300, 0x320, 0x330, 0x340, 0x350,
    0x360, 0x370, 0x380, 0x3E0,
];

fn is_trap(offset: u16, extended_lvt: bool, x2apic: bool) -> bool {
    match offset {
        0x3F0 => x2apic,
        0x500..=0x530 => extended_lvt,
        _ => TRAPS.contains(&offset),
    }
}

/// Every row of the access table, as a write and as a read that exits.
#[test]
fn every_access_is_trap_or_fault() {
    for extended_lvt in [false, true] {
        let caps = Capabilities { extended_lvt, ..CAPS };
        for x2apic in [false, true] {
            for offset in (0..0x1000u16).step_by(16) {
                let mut rig = Options { caps, ..Options::vcpus(1) }.build();
                rig.enable(0);
                if x2apic {
                    rig.enter_x2apic(0);
                }
                rig.enter(0);
                let trap = is_trap(offset, extended_lvt, x2apic);
                let outcome = rig.exit(0, ACCESS, WRITE | u64::from(offset), 0);
                check(outcome, trap, offset, true, x2apic);
                let outcome = rig.exit(0, ACCESS, u64::from(offset), 0);
                check(outcome, false, offset, false, x2apic);
            }
        }
    }
}

fn check(outcome: ExitOutcome, trap: bool, offset: u16, write: bool, x2apic: bool) {
    // EXITINFO1 has offset bits 11:4.
    match outcome {
        ExitOutcome::Done(_) => assert!(trap, "{offset:#x}"),
        ExitOutcome::Decode(access) => {
            assert!(!trap && !x2apic, "{offset:#x}");
            let kind = if write { AccessKind::Write } else { AccessKind::Read };
            assert_eq!(access, WindowAccess { offset, kind });
        }
        ExitOutcome::Msr { msr, write: written } => {
            assert!(!trap && x2apic, "{offset:#x}");
            assert_eq!((msr, written), (0x800 + u32::from(offset >> 4), write));
        }
        other => panic!("{offset:#x}: {other:?}"),
    }
}

#[test]
fn a_trap_does_what_follows_the_store() {
    let mut rig = rig();
    let page = rig.page(0);
    page.write(Register::Svr, 0x0FF);
    let outcome = rig.exit(0, ACCESS, WRITE | 0x0F0, 0);
    assert_eq!(outcome, ExitOutcome::Done(Effect::None));
    assert!(rig.vcpus[0].apic().slot().lvt(vlapic_core::LvtEntry::Timer).masked());
    page.write(Register::InitialCount, 100);
    let outcome = rig.exit(0, ACCESS, WRITE | 0x380, 0);
    assert_eq!(outcome, ExitOutcome::Done(Effect::TimerChanged));
}

#[test]
fn a_level_triggered_eoi_is_broadcast_whatever_isr_says() {
    let (lower, ended) = (Vector::new(0x52).unwrap(), Vector::new(0x61).unwrap());
    for already_cleared in [false, true] {
        for named in [0x61, 0] {
            if already_cleared && named == 0 {
                // Nothing says which vector it was.
                continue;
            }
            let mut rig = rig();
            let page = rig.page(0);
            for vector in [lower, ended] {
                page.tmr().insert(vector);
                page.isr().insert_owned(vector);
            }
            // What the guest wrote, which hardware has put there.
            page.write(Register::Eoi, 0x1234);
            if already_cleared {
                page.isr().remove_owned(ended);
            }
            let outcome = rig.exit(0, ACCESS, WRITE | 0x0B0, named);
            assert_eq!(outcome, ExitOutcome::Done(Effect::EndOfInterrupt(ended)));
            assert_eq!(page.isr().iter().collect::<Vec<_>>(), [lower], "and no other");
            assert_eq!(page.read(Register::Ppr), 0x50);
            assert_eq!(page.read(Register::Eoi), 0);
        }
    }
}

#[test]
fn an_eoi_that_ends_nothing() {
    let mut rig = rig();
    let edge = Vector::new(0x61).unwrap();
    rig.page(0).isr().insert_owned(edge);
    let outcome = rig.exit(0, ACCESS, WRITE | 0x0B0, 0);
    assert_eq!(outcome, ExitOutcome::Done(Effect::None));
    assert!(rig.page(0).isr().contains(edge), "edge-triggered ones end without an exit");
}

#[test]
fn other_exits_are_the_hypervisors() {
    let mut rig = rig();
    for code in [0x018, 0x060, 0x064, 0x078, 0x07C, 0x400, 0x403, u64::MAX] {
        assert_eq!(rig.exit(0, code, u64::MAX, u64::MAX), ExitOutcome::NotOurs, "{code:#x}");
    }
}

/// Whatever EXITINFO1, EXITINFO2 and page hold, nothing panics and the APIC stays in its bounds.
#[test]
fn nonsense_is_survived() {
    let mut state = 0x1234_5678_9ABC_DEF1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut rig = rig();
    rig.vcpus[0].set_svr_writes(SvrWrites::Silent { recheck: 1000 });
    for _ in 0..20_000 {
        let page = rig.page(0);
        page.store(random() as u16, random() as u32);
        page.write(Register::Svr, 0x1FF);
        let code = if random() & 1 == 0 { IPI } else { ACCESS };
        let (info_1, info_2) = (random(), random() & 0x7_0000_0FFF);
        let _ = rig.exit(0, code, info_1, info_2);
        rig.enter(0);
        assert!(rig.vcpus[0].apic().processor_priority() as u32 == page.read(Register::Ppr));
    }
}

#[test]
fn remote_read_stays_read_only() {
    let mut rig = rig();
    rig.page(0).write(Register::RemoteRead, 0x1234);
    let outcome = rig.exit(0, ACCESS, WRITE | 0x0C0, 0);
    assert_eq!(outcome, ExitOutcome::Done(Effect::None));
    assert_eq!(rig.page(0).read(Register::RemoteRead), 0);
}
