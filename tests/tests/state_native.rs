//! Our own format: what is exported and imported is the same APIC, byte for byte and in all that follows; and nothing
//! that somebody made up is taken for one.
#![expect(clippy::unwrap_used, reason = "a test that gets here has failed")]

use std::sync::atomic::{AtomicU8, Ordering};

use apicv::{HostMode, NotificationVectors, PostedDescriptor, Posting};
use proptest::prelude::*;
use vlapic_core::state::{Correction, Feature, ImportError, STATE_LENGTH};
use vlapic_core::{
    ApicPage, ClockRatio, Delivery, DirectInbox, IA32_APIC_BASE, IA32_TSC_DEADLINE, Inbox,
    LocalApic, LvtEntry, Mode, Pin, Profile, Register, Slot, Trigger, Width,
};
use vlapic_tests::plain::Plain;

/// What happens to an APIC, nothing of it settled before the next.
#[derive(Debug, Clone, Copy)]
enum Op {
    Write(Register, u32),
    Msr(u32, u64),
    Read(Register),
    Request(u8, Trigger),
    Receive(Delivery),
    Lint(Pin, bool),
    Local(LvtEntry),
    Register(u8),
    Notify,
    Clear,
    Time(u32),
    Prepare,
    TakeEvent,
    TakeVector,
}

fn op() -> impl Strategy<Value = Op> {
    let register = (0u16..0x54).prop_filter_map("a register", |slot| Register::at(slot << 4));
    let entry = (0..7usize).prop_map(|index| LvtEntry::ALL[index]);
    let trigger =
        any::<bool>().prop_map(|level| if level { Trigger::Level } else { Trigger::Edge });
    let timer = Register::Lvt(LvtEntry::Timer);
    let lint0 = Register::Lvt(LvtEntry::Lint0);
    prop_oneof![
        4 => Just(Op::Write(Register::Svr, 0x1ff)),
        6 => (register.clone(), any::<u32>()).prop_map(|(register, value)| Op::Write(register, value)),
        4 => (0u32..3, 16u32..256).prop_map(move |(mode, vector)| Op::Write(timer, mode << 17 | vector)),
        4 => (1u32..5000).prop_map(|count| Op::Write(Register::InitialCount, count)),
        2 => (0u32..16).prop_map(|divide| Op::Write(Register::DivideConfiguration, divide)),
        2 => (0u64..20_000).prop_map(|time| Op::Msr(IA32_TSC_DEADLINE, time)),
        1 => prop::sample::select(vec![0u64, 0x800, 0xc00, 0x900]).prop_map(|bits| Op::Msr(IA32_APIC_BASE, 0xfee0_0000 | bits)),
        2 => (16u32..256).prop_map(move |vector| Op::Write(lint0, 0x8000 | vector)),
        2 => register.prop_map(Op::Read),
        8 => (any::<u8>(), trigger).prop_map(|(vector, trigger)| Op::Request(vector, trigger)),
        2 => prop::sample::select(vec![Delivery::Nmi, Delivery::Smi, Delivery::ExtInt]).prop_map(Op::Receive),
        1 => Just(Op::Receive(Delivery::Init)),
        1 => any::<u8>().prop_map(|page| Op::Receive(Delivery::Startup { page })),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(one, level)| Op::Lint(if one { Pin::Lint1 } else { Pin::Lint0 }, level)),
        2 => entry.prop_map(Op::Local),
        1 => (0xf0u8..).prop_map(Op::Register),
        2 => Just(Op::Notify),
        1 => Just(Op::Clear),
        4 => (0u32..3000).prop_map(Op::Time),
        4 => Just(Op::Prepare),
        3 => Just(Op::TakeEvent),
        5 => Just(Op::TakeVector),
    ]
}

/// An APIC with what surrounds it.
struct Subject<'s, I> {
    apic: LocalApic<'s, I>,
    pending: &'s AtomicU8,
    now: u64,
}

impl<'s, I: Inbox> Subject<'s, I> {
    fn new(slot: &'s Slot<'s, I>, pending: &'s AtomicU8) -> Self {
        let mut apic = LocalApic::new(slot, true);
        apic.bind_upcall(pending);
        Self { apic, pending, now: 100 }
    }

    /// What can be seen of the operation, but for whom it would notify.
    fn apply(&mut self, op: Op) -> String {
        let (slot, now) = (self.apic.slot(), self.now);
        let apic = &mut self.apic;
        match op {
            Op::Write(register, value) if slot.mode() == Mode::X2Apic => {
                format!("{:?}", apic.write_msr(register.msr(), value.into(), now))
            }
            Op::Write(register, value) => {
                format!("{:?}", apic.write_mmio(register.offset(), Width::Dword, value.into(), now))
            }
            Op::Msr(msr, value) => format!("{:?}", apic.write_msr(msr, value, now)),
            Op::Read(register) if slot.mode() == Mode::X2Apic => {
                format!("{:?}", apic.read_msr(register.msr(), now))
            }
            Op::Read(register) => {
                format!("{:?}", apic.read_mmio(register.offset(), Width::Dword, now))
            }
            Op::Request(vector, trigger) => format!("{:?}", slot.request(vector, trigger).outcome),
            Op::Receive(delivery) => format!("{:?}", slot.receive(delivery).outcome),
            Op::Lint(pin, level) => {
                let _ = slot.set_lint(pin, level);
                String::new()
            }
            Op::Local(entry) => format!("{:?}", slot.local_event(entry).outcome),
            Op::Register(vector) => {
                format!("{:?}", slot.register_upcall(vector, self.pending).is_ok())
            }
            Op::Notify => {
                let _ = slot.notify_upcall(self.pending);
                String::new()
            }
            Op::Clear => {
                self.pending.store(0, Ordering::SeqCst);
                String::new()
            }
            Op::Time(ticks) => {
                self.now += u64::from(ticks);
                String::new()
            }
            Op::Prepare => format!("{:?}", apic.prepare(now)),
            Op::TakeEvent => format!("{:?}", apic.take_event()),
            Op::TakeVector => {
                let _ = apic.prepare(now);
                let vector = apic.nominate();
                format!("{vector:?} {:?}", vector.map(|vector| apic.commit(vector)))
            }
        }
    }

    fn export(&mut self) -> [u8; STATE_LENGTH] {
        let mut state = [0; STATE_LENGTH];
        self.apic.export_state(self.now, &mut state);
        state
    }
}

/// Runs `before` on one APIC, moves it to another, and runs `after` on both.
fn same_life<I: Inbox>(slots: &[Slot<'_, I>; 2], before: &[Op], after: &[Op]) {
    let pending = [const { AtomicU8::new(0) }; 2];
    let mut original = Subject::new(&slots[0], &pending[0]);
    for &op in before {
        original.apply(op);
    }
    let state = original.export();
    let mut copy = Subject::new(&slots[1], &pending[1]);
    // What the other APIC was before does not matter.
    for &op in before.iter().rev().chain(after) {
        copy.apply(op);
    }
    copy.now = original.now;
    pending[1].store(pending[0].load(Ordering::SeqCst), Ordering::SeqCst);
    let corrections = copy.apic.import_state(copy.now, &state).unwrap();
    assert!(corrections.is_empty(), "{corrections:?}");
    assert_eq!(copy.export(), state);
    for &op in after {
        assert_eq!(copy.apply(op), original.apply(op), "{op:x?}");
    }
    assert_eq!(copy.export(), original.export());
}

fn profile() -> impl Strategy<Value = Profile> {
    let clock = prop::sample::select(vec![(1, 1), (3, 2), (7, 100), (100, 7)])
        .prop_map(|(tsc, bus)| ClockRatio { tsc, bus });
    let flags = any::<[bool; 8]>();
    (clock, flags).prop_map(|(clock, [amd, cmci, eoi, deadline, x2apic, id, focus, extended])| {
        let model = if amd { Profile::amd() } else { Profile::intel() };
        let model = model.with_cmci(cmci).with_eoi_suppression(eoi).with_tsc_deadline(deadline);
        let model = model.with_x2apic(x2apic).with_writable_xapic_id(id).with_focus_check(focus);
        model.with_extended_space(extended).with_timer_clock(clock)
    })
}

const VECTORS: NotificationVectors = NotificationVectors { running: 0xf2, wakeup: 0xf1 };

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_copy_lives_the_same_life(
        profile in profile(),
        id in prop::sample::select(vec![0u32, 3, 0xfe, 0x123]),
        before in prop::collection::vec(op(), 0..60),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let pages = [const { ApicPage::new() }; 2];
        let slots = [0, 1].map(|index| Slot::new(&pages[index], id, profile, DirectInbox));
        same_life(&slots, &before, &after);
    }

    /// Posts wait in a descriptor, and level-triggered ones may be staged.
    #[test]
    fn posts_come_along(
        before in prop::collection::vec(op(), 0..60),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let pages = [const { ApicPage::new() }; 2];
        let descriptors = [const { PostedDescriptor::new() }; 2];
        let slots = [0, 1].map(|index| {
            let posting = Posting::new(&descriptors[index], VECTORS, HostMode::XApic);
            Slot::new(&pages[index], 0, Profile::intel(), posting)
        });
        same_life(&slots, &before, &after);
    }

    /// A guest may scribble on its page and is still saved and restored. What was put right once is right.
    #[test]
    fn a_scribbled_page_can_be_moved(
        profile in profile(),
        before in prop::collection::vec(op(), 0..30),
        scribbles in prop::collection::vec((0u16..0x540, any::<u32>()), 0..40),
    ) {
        let pages = [const { ApicPage::new() }; 3];
        let slots = [0, 1, 2].map(|index| Slot::new(&pages[index], 2, profile, DirectInbox));
        let pending = AtomicU8::new(0);
        let [mut first, mut second, mut third] = [0, 1, 2].map(|index| Subject::new(&slots[index], &pending));
        for &op in &before {
            first.apply(op);
        }
        for (offset, value) in scribbles {
            pages[0].store(offset, value);
        }
        let state = first.export();
        let _ = second.apic.import_state(first.now, &state).unwrap();
        second.now = first.now;
        let state = second.export();
        let corrections = third.apic.import_state(first.now, &state).unwrap();
        prop_assert!(!corrections.iter().any(|one| one != Correction::ClassInServiceTwice), "{corrections:?}");
        third.now = first.now;
        prop_assert_eq!(third.export(), state);
    }

    /// Any bytes: a named error and no change, or an APIC.
    #[test]
    fn made_up_bytes(
        profile in profile(),
        flips in prop::collection::vec((0..STATE_LENGTH, any::<u8>()), 1..12),
        length in 0..STATE_LENGTH + 9,
        sealed in any::<bool>(),
    ) {
        let pages = [const { ApicPage::new() }; 2];
        let slots = [0, 1].map(|index| Slot::new(&pages[index], 7, profile, DirectInbox));
        let pending = AtomicU8::new(0);
        let [mut from, mut to] = [0, 1].map(|index| Subject::new(&slots[index], &pending));
        let mut state = from.export().to_vec();
        for (at, byte) in flips {
            state[at] = byte;
        }
        if sealed {
            seal(&mut state);
        } else {
            state.resize(length, 0xA5);
        }
        let before = to.export();
        match to.apic.import_state(100, &state) {
            Ok(_) => {
                let state = to.export();
                let corrections = to.apic.import_state(100, &state).unwrap();
                let twice = corrections.contains(Correction::ClassInServiceTwice);
                prop_assert!(corrections.is_empty() || twice, "{:?}", corrections);
            }
            Err(_) => prop_assert_eq!(to.export(), before),
        }
    }
}

/// Puts the checksum right.
fn seal(state: &mut [u8]) {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    let crc = !state[..12].iter().chain(&state[16..]).fold(!0, step);
    state[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn exported(profile: Profile, prepare: impl FnOnce(&mut Plain)) -> [u8; STATE_LENGTH] {
    let mut plain = Plain::enabled(profile);
    prepare(&mut plain);
    let mut state = [0; STATE_LENGTH];
    plain.apic.export_state(plain.now, &mut state);
    state
}

fn imported(
    profile: Profile,
    now: u64,
    state: &[u8],
) -> (Plain, Result<vlapic_core::state::Corrections, ImportError>) {
    let mut plain = Plain::new(profile);
    plain.now = now;
    let result = plain.apic.import_state(now, state);
    (plain, result)
}

/// A periodic count at an odd place, by a clock that does not divide: every expiry is where it would have been.
#[test]
fn the_timers_phase_to_the_tick() {
    let profile = Profile::intel().with_timer_clock(ClockRatio { tsc: 7, bus: 3 });
    let program = |plain: &mut Plain| {
        plain.now = 1_000;
        let _ = plain.write_lvt(LvtEntry::Timer, 1 << 17 | 0x40);
        plain.set(Register::DivideConfiguration, 0b1011);
        plain.set(Register::InitialCount, 97);
        plain.now = 4_321;
    };
    let mut original = Plain::enabled(profile);
    program(&mut original);
    let state = exported(profile, program);
    let (mut copy, corrections) = imported(profile, 5_555, &state);
    assert!(corrections.unwrap().is_empty());
    for now in 5_555..9_000 {
        (original.now, copy.now) = (now, now);
        let count = original.read(Register::CurrentCount);
        assert_eq!(copy.read(Register::CurrentCount), count, "at {now}");
        assert_eq!(copy.apic.next_deadline(), original.apic.next_deadline(), "at {now}");
    }
}

#[test]
fn a_clock_that_stands_earlier_and_one_of_another_speed() {
    let profile = Profile::intel();
    let state = exported(profile, |plain| {
        let _ = plain.write_lvt(LvtEntry::Timer, 0x40);
        plain.set(Register::DivideConfiguration, 0b1011);
        plain.set(Register::InitialCount, 1000);
        plain.now = 400;
    });
    let (mut copy, corrections) = imported(profile, 50, &state);
    assert!(corrections.unwrap().contains(Correction::Phase));
    assert_eq!(copy.read(Register::CurrentCount), 600);
    let slower = profile.with_timer_clock(ClockRatio { tsc: 10, bus: 1 });
    let (mut copy, corrections) = imported(slower, 400, &state);
    assert!(corrections.unwrap().contains(Correction::Phase));
    assert_eq!(copy.read(Register::CurrentCount), 600);
    copy.now = 410;
    assert_eq!(copy.read(Register::CurrentCount), 599);
}

#[test]
fn what_is_rejected_by_name() {
    let profile = Profile::intel();
    let state = exported(profile, |_| {});
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut state = state.to_vec();
        change(&mut state);
        imported(profile, 0, &state).1.unwrap_err()
    };
    let sealed = |at: usize, bytes: &[u8]| {
        refused(&|state| {
            state[at..at + bytes.len()].copy_from_slice(bytes);
            seal(state);
        })
    };
    assert_eq!(refused(&|state| state[0] = 0), ImportError::NotOurs);
    assert_eq!(refused(&|state| state.truncate(7)), ImportError::NotOurs);
    assert_eq!(refused(&|state| state[8] = 2), ImportError::Version(2));
    assert_eq!(refused(&|state| state.truncate(431)), ImportError::Length(431));
    assert_eq!(refused(&|state| state.push(0)), ImportError::Length(433));
    assert_eq!(refused(&|state| state[200] ^= 1), ImportError::Checksum);
    assert_eq!(sealed(10, &[0, 0]), ImportError::Field(10));
    assert_eq!(sealed(16, &[9]), ImportError::ApicId { found: 9, expected: 0 });
    assert_eq!(sealed(20, &[0b0001_1111]), ImportError::Vendor);
    assert_eq!(sealed(21, &[1]), ImportError::Field(20));
    assert_eq!(sealed(24, &[0]), ImportError::Field(24));
    assert_eq!(sealed(32, &[1]), ImportError::ApicBase(0xfee0_0901));
    assert_eq!(sealed(33, &[0b0101]), ImportError::ApicBase(0xfee0_0500));
    assert_eq!(sealed(48, &[1]), ImportError::Field(48), "an origin without a count");
    assert_eq!(sealed(48, &[1, 0, 0, 0, 0, 0, 0, 0, 5]), ImportError::Field(48), "in the future");
    assert_eq!(sealed(56, &[1, 0, 0, 0, 8]), ImportError::Field(60));
    assert_eq!(sealed(61, &[15]), ImportError::Field(61));
    assert_eq!(sealed(62, &[2]), ImportError::Field(62));
    assert_eq!(sealed(63, &[1]), ImportError::Field(63));
    assert_eq!(sealed(72, &[1 << 4]), ImportError::Field(72), "a SIPI that nobody waits for");
    assert_eq!(sealed(74, &[1 << 6]), ImportError::Field(72));
    assert_eq!(sealed(77, &[1]), ImportError::Field(76));
    assert_eq!(sealed(95, &[1]), ImportError::Field(80));
    assert_eq!(sealed(96 + 4 * 0x20, &[1]), ImportError::IllegalVector);
}

/// A profile that lacks what the guest uses is refused; one that lacks what it does not use is not.
#[test]
fn another_profile() {
    let full = Profile::intel();
    let refuse = |lesser: Profile, feature, prepare: &dyn Fn(&mut Plain)| {
        let state = exported(full, prepare);
        let error = imported(lesser, 0, &state).1.unwrap_err();
        assert_eq!(error, ImportError::Unsupported(feature));
        let unused = exported(full, |_| {});
        assert!(imported(lesser, 0, &unused).1.is_ok(), "{feature}");
    };
    refuse(full.with_x2apic(false), Feature::X2Apic, &|plain| plain.enter_x2apic());
    refuse(full.with_tsc_deadline(false), Feature::TscDeadline, &|plain| {
        plain.set(Register::Lvt(LvtEntry::Timer), 2 << 17 | 0x1_0040);
    });
    refuse(full.with_cmci(false), Feature::Cmci, &|plain| {
        plain.set(Register::Lvt(LvtEntry::Cmci), 0x40);
    });
    refuse(full.with_eoi_suppression(false), Feature::EoiSuppression, &|plain| {
        plain.set(Register::Svr, 0x11ff);
    });
    let state =
        exported(full.with_writable_xapic_id(true), |plain| plain.set(Register::Id, 5 << 24));
    let error = imported(full, 0, &state).1.unwrap_err();
    assert_eq!(error, ImportError::Unsupported(Feature::WritableId));
    let state = exported(Profile::amd(), |plain| plain.set(Register::ExtendedControl, 1));
    let error = imported(Profile::amd().with_extended_space(false), 0, &state).1.unwrap_err();
    assert_eq!(error, ImportError::Unsupported(Feature::ExtendedSpace));

    // More than the source had: in its reset state.
    let state = exported(full.with_cmci(false), |_| {});
    let (mut more, corrections) = imported(full, 0, &state);
    assert_eq!(corrections.unwrap().iter().collect::<Vec<_>>(), [Correction::Version]);
    assert_eq!(more.read(Register::Lvt(LvtEntry::Cmci)), 0x1_0000);
}
