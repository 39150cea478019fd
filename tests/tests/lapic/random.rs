//! Any operations in any order, on pages that anybody may scribble on: no panic, and what must
//! always hold does.

use std::sync::atomic::AtomicU8;

use proptest::prelude::*;
use vlapic_core::{
    Delivery, LvtEntry, Outcome, Pin, Profile, RefusedUpcall, Register, Trigger, Vector, Width,
};
use vlapic_tests::plain::Plain;

#[derive(Clone, Debug)]
enum Op {
    Mmio { offset: u16, width: u8, value: Option<u64> },
    Msr { msr: u32, value: Option<u64> },
    Cr8(u64),
    Stored { offset: u16, value: u32 },
    Scribble { offset: u16, value: u32 },
    Receive(u8, u8, bool),
    Local(u8),
    Pin(bool, bool),
    Prepare(u64),
    Acknowledge,
    Eoi,
    TakeEvent,
    VirtualEoi(u8),
    Register(u8),
    Notify,
    ClearPending,
    Reset(bool),
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        0..0x200u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(0x1FF),
        Just(0xFF),
    ]
}

fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![4 => (0..0x54u16).prop_map(|slot| slot << 4), 1 => any::<u16>()]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0x800..0x854u32, 2 => Just(0x1Bu32), 1 => Just(0x6E0u32), 1 => any::<u32>()]
}

fn base() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0xFEE0_0900u64), Just(0xFEE0_0D00), Just(0xFEE0_0100), any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (offset(), 0..4u8, prop::option::weighted(0.7, value()))
            .prop_map(|(offset, width, value)| Op::Mmio { offset, width, value }),
        6 => (msr(), prop::option::weighted(0.7, value()))
            .prop_map(|(msr, value)| Op::Msr { msr, value }),
        3 => base().prop_map(|value| Op::Msr { msr: 0x1B, value: Some(value) }),
        1 => value().prop_map(Op::Cr8),
        4 => (offset(), any::<u32>()).prop_map(|(offset, value)| Op::Stored { offset, value }),
        4 => (offset(), any::<u32>()).prop_map(|(offset, value)| Op::Scribble { offset, value }),
        4 => (0..8u8, any::<u8>(), any::<bool>()).prop_map(|(m, v, l)| Op::Receive(m, v, l)),
        1 => (0..7u8).prop_map(Op::Local),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(pin, level)| Op::Pin(pin, level)),
        4 => value().prop_map(Op::Prepare),
        3 => Just(Op::Acknowledge),
        2 => Just(Op::Eoi),
        2 => Just(Op::TakeEvent),
        1 => any::<u8>().prop_map(Op::VirtualEoi),
        1 => any::<u8>().prop_map(Op::Register),
        2 => Just(Op::Notify),
        1 => Just(Op::ClearPending),
        1 => any::<bool>().prop_map(Op::Reset),
    ]
}

fn profile() -> impl Strategy<Value = Profile> {
    (any::<bool>(), any::<[bool; 4]>()).prop_map(|(amd, [cmci, deadline, id, x2apic])| {
        let profile = if amd { Profile::amd() } else { Profile::intel() };
        profile
            .with_cmci(cmci)
            .with_tsc_deadline(deadline)
            .with_writable_xapic_id(id)
            .with_x2apic(x2apic)
    })
}

const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

fn delivery(mode: u8, vector: u8, level: bool) -> Delivery {
    let trigger = if level { Trigger::Level } else { Trigger::Edge };
    match mode {
        0 | 3 => Delivery::Fixed { vector, trigger },
        1 => Delivery::LowestPriority { vector, trigger },
        2 => Delivery::Smi,
        4 => Delivery::Nmi,
        5 => Delivery::Init,
        6 => Delivery::Startup { page: vector },
        _ => Delivery::ExtInt,
    }
}

fn perform(plain: &mut Plain, pending: &AtomicU8, op: &Op) {
    let now = plain.now;
    match *op {
        Op::Mmio { offset, width, value: None } => {
            let width = WIDTHS[usize::from(width)];
            let read = plain.apic.read_mmio(offset, width, now);
            assert_eq!(read & !width.mask(), 0);
        }
        Op::Mmio { offset, width, value: Some(value) } => {
            let _ = plain.apic.write_mmio(offset, WIDTHS[usize::from(width)], value, now);
        }
        Op::Msr { msr, value: None } => drop(plain.rdmsr(msr)),
        Op::Msr { msr, value: Some(value) } => drop(plain.wrmsr(msr, value)),
        Op::Cr8(value) => assert_eq!(plain.apic.write_cr8(value, now).is_err(), value > 15),
        Op::Stored { offset, value } => {
            if let Some(register) = Register::at(offset) {
                plain.slot.page().write(register, value);
                let _ = plain.apic.after_write(register, now);
            }
        }
        Op::Scribble { offset, value } => plain.slot.page().store(offset, value),
        Op::Receive(mode, vector, level) => {
            let accepts = plain.slot.accepts();
            let before = plain.irr();
            let delivery = delivery(mode, vector, level);
            let outcome = plain.slot.receive(delivery).outcome;
            if matches!(delivery, Delivery::Fixed { .. } | Delivery::LowestPriority { .. }) {
                let accepted = accepts && vector >= 16;
                assert_eq!(outcome == Outcome::Accepted, accepted);
                assert_eq!(plain.irr().contains(&vector), accepted || before.contains(&vector));
            } else {
                assert_eq!(plain.irr(), before);
            }
        }
        Op::Local(entry) => drop(plain.slot.local_event(LvtEntry::ALL[usize::from(entry)])),
        Op::Pin(pin, level) => {
            let _ = plain.slot.set_lint(if pin { Pin::Lint1 } else { Pin::Lint0 }, level);
        }
        Op::Prepare(passed) => {
            plain.now = plain.now.wrapping_add(passed);
            let prepared = plain.apic.prepare(plain.now);
            assert!(!(prepared.upcall_owed && plain.slot.accepts()));
        }
        Op::Acknowledge => {
            let nominated = plain.apic.nominate();
            let spurious = plain.slot.page().svr().spurious_vector();
            let taken = plain.apic.acknowledge();
            assert_eq!(taken, nominated.map_or(spurious, Vector::get));
        }
        Op::Eoi => drop(plain.apic.end_of_interrupt()),
        Op::TakeEvent => drop(plain.apic.take_event()),
        Op::VirtualEoi(vector) => {
            if let Some(vector) = Vector::new(vector) {
                let _ = plain.apic.after_virtual_eoi(vector);
            }
        }
        Op::Register(vector) => {
            assert_eq!(plain.slot.register_upcall(vector, pending).is_err(), vector < 16);
        }
        Op::Notify => drop(plain.slot.notify_upcall(pending)),
        Op::ClearPending => pending.store(0, std::sync::atomic::Ordering::SeqCst),
        Op::Reset(bootstrap) => plain.apic.reset(bootstrap),
    }
}

/// What holds of every page.
fn always(plain: &Plain) {
    let tpr = plain.slot.page().read(Register::Tpr) as u8;
    let isr = plain.slot.page().isr().highest().map_or(0, |vector| vector.get() & 0xF0);
    let ppr = if tpr >> 4 >= isr >> 4 { tpr } else { isr };
    assert_eq!(plain.apic.processor_priority(), ppr);
    if let Some(vector) = plain.apic.nominate() {
        assert!(vector.get() >> 4 > ppr >> 4 && plain.slot.present());
    }
}

/// What holds of a page that only the core has written.
fn unscribbled(plain: &Plain) {
    let page = plain.slot.page();
    for offset in [0x100, 0x180, 0x200] {
        assert_eq!(page.load(offset) & 0xFFFF, 0, "vectors below 16 at {offset:#x}");
    }
    let software_enabled = page.svr().software_enabled();
    for (offset, kept) in [
        (0x080, 0xFFu32),
        (0x0F0, 0x13FF),
        (0x280, 0xFF),
        (0x320, 0x0007_00FF),
        (0x330, 0x0001_07FF),
        (0x340, 0x0001_07FF),
        (0x350, 0x0001_E7FF),
        (0x360, 0x0001_A7FF),
        (0x370, 0x0001_07FF),
        (0x3E0, 0xB),
    ] {
        let bits = page.load(offset);
        assert_eq!(bits & !kept, 0, "{offset:#x} {bits:#x}");
        if (0x320..=0x370).contains(&offset) && !software_enabled {
            assert_ne!(bits & 1 << 16, 0, "{offset:#x} is masked");
        }
    }
    assert_eq!(page.load(0x030), plain.slot.profile().version());
}

fn run(profile: Profile, ops: &[Op], scribbles: bool) {
    let mut plain = Plain::with(profile, 0x45, true, RefusedUpcall::Owed);
    let pending = AtomicU8::new(0);
    for op in ops {
        // Hardware stores only to registers that software may write.
        let scribble = matches!(op, Op::Scribble { .. } | Op::Stored { .. });
        if scribbles || !scribble {
            perform(&mut plain, &pending, op);
        }
        always(&plain);
        if !scribbles {
            unscribbled(&plain);
        }
    }
    assert!(plain.apic.display(plain.now).to_string().lines().count() >= 15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_guest_breaks_it(profile in profile(), ops in prop::collection::vec(op(), 1..120)) {
        run(profile, &ops, false);
    }

    #[test]
    fn no_page_breaks_it(profile in profile(), ops in prop::collection::vec(op(), 1..120)) {
        run(profile, &ops, true);
    }
}
