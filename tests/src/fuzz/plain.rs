//! VMs in plain emulation, and what anybody may do to them.

use std::sync::atomic::{AtomicU8, Ordering};

use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::state::STATE_LENGTH;
use vlapic_core::{
    ApicPage, ClockRatio, Delivery, DirectInbox, Effect, Inbox, LocalApic, LvtEntry, Message,
    MsiAddress, MsiData, MsiDestination, Notify, Outcome, Pin, Profile, Receipt, Register, Slot,
    Trigger, Vector, Vm, Width,
};

/// Something that happens to the APIC of one vCPU, by its guest, a device, or the hypervisor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Load(u16, Width),
    Store(u16, Width, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Cr8(Option<u64>),
    /// The processor has stored the value and exits.
    AfterWrite(Register, u32),
    AfterEoi(u8),
    Request(u8, Trigger),
    Receive(Delivery),
    Msi(u64, u32),
    Lint(Pin, bool),
    Local(LvtEntry),
    Announce(u8),
    RegisterUpcall(u8),
    NotifyUpcall,
    ClearPending,
    Time(u64),
    /// Entry work, and everything there is to take.
    Settle,
    Acknowledge,
    Init,
    Reset,
    /// Out, and in again.
    Move,
}

/// The model of APIC that the first bytes ask for.
pub(super) fn profile(bytes: &mut Unstructured<'_>) -> Result<Profile> {
    let bits = u16::arbitrary(bytes)?;
    let bit = |number: u16| bits & 1 << number != 0;
    let model = if bit(0) { Profile::amd() } else { Profile::intel() };
    let clock = match bits >> 14 {
        0 => ClockRatio { tsc: 1, bus: 1 },
        1 => ClockRatio { tsc: 5, bus: 3 },
        2 => ClockRatio { tsc: u32::MAX, bus: 1 },
        _ => ClockRatio { tsc: 1, bus: u32::MAX },
    };
    let model = model.with_cmci(bit(1)).with_eoi_suppression(bit(2)).with_tsc_deadline(!bit(3));
    let model = model.with_x2apic(!bit(4)).with_writable_xapic_id(bit(5)).with_focus_check(bit(6));
    Ok(model.with_extended_space(!bit(7)).with_timer_clock(clock))
}

pub(super) fn width(bytes: &mut Unstructured<'_>) -> Result<Width> {
    Ok(match u8::arbitrary(bytes)? & 7 {
        0 => Width::Byte,
        1 => Width::Word,
        2 => Width::Qword,
        _ => Width::Dword,
    })
}

/// A register, more often than a place that is none.
pub(super) fn offset(bytes: &mut Unstructured<'_>) -> Result<u16> {
    let raw = u16::arbitrary(bytes)?;
    Ok(match raw >> 14 {
        0 => raw & 0xfff,
        1 => raw & 0x7f0,
        _ => raw & 0x3f0,
    })
}

pub(super) fn register(bytes: &mut Unstructured<'_>) -> Result<Register> {
    Ok(Register::at(u16::from(u8::arbitrary(bytes)? % 0x54) << 4).unwrap_or(Register::Svr))
}

fn msr(bytes: &mut Unstructured<'_>) -> Result<u32> {
    let raw = u16::arbitrary(bytes)?;
    Ok(match raw >> 13 {
        0 => 0x1b,
        1 => 0x6e0,
        2 => u32::from(raw),
        _ => 0x800 | u32::from(raw) & 0x3f,
    })
}

/// Small values, single bits, and any.
pub(super) fn value(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let kind = u8::arbitrary(bytes)?;
    Ok(match kind >> 6 {
        0 => u64::from(u8::arbitrary(bytes)?) | u64::from(kind & 1) << 8,
        1 => 1 << (kind & 63),
        2 => u64::from(u32::arbitrary(bytes)?),
        _ => u64::arbitrary(bytes)?,
    })
}

/// IA32_APIC_BASE, more often one that can be.
fn base(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let bits = [0x000, 0x800, 0xc00, 0x900, 0xd00, 0x400];
    let kind = usize::from(u8::arbitrary(bytes)?);
    match bits.get(kind % 8) {
        Some(mode) => Ok(0xfee0_0000 | mode),
        None => u64::arbitrary(bytes),
    }
}

fn delivery(bytes: &mut Unstructured<'_>) -> Result<Delivery> {
    let vector = u8::arbitrary(bytes)?;
    let kind = u8::arbitrary(bytes)?;
    let trigger = if kind & 8 == 0 { Trigger::Edge } else { Trigger::Level };
    Ok(match kind & 7 {
        0 | 7 => Delivery::Fixed { vector, trigger },
        1 => Delivery::LowestPriority { vector, trigger },
        2 => Delivery::Smi,
        3 => Delivery::ExtInt,
        4 => Delivery::Nmi,
        5 => Delivery::Init,
        _ => Delivery::Startup { page: vector },
    })
}

fn trigger(bytes: &mut Unstructured<'_>) -> Result<Trigger> {
    Ok(if bool::arbitrary(bytes)? { Trigger::Level } else { Trigger::Edge })
}

impl Op {
    /// What a guest and its devices may do; the hypervisor in good order.
    pub(super) fn take(bytes: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u8::arbitrary(bytes)? % 32 {
            0..=3 => Self::Store(offset(bytes)?, width(bytes)?, value(bytes)?),
            4 => Self::Load(offset(bytes)?, width(bytes)?),
            5..=7 => match msr(bytes)? {
                0x1b => Self::Wrmsr(0x1b, base(bytes)?),
                msr => Self::Wrmsr(msr, value(bytes)?),
            },
            8 => Self::Rdmsr(msr(bytes)?),
            9 => Self::Cr8(Some(value(bytes)? & 0x1f)),
            10 => Self::Cr8(None),
            11..=13 => Self::Request(u8::arbitrary(bytes)?, trigger(bytes)?),
            14 => Self::Receive(delivery(bytes)?),
            15 => Self::Msi(u64::arbitrary(bytes)?, u32::arbitrary(bytes)?),
            16 => Self::Msi(
                0xfee0_0000 | u64::from(u16::arbitrary(bytes)?),
                u32::arbitrary(bytes)? & 0xcfff,
            ),
            17 => {
                let pin = if bool::arbitrary(bytes)? { Pin::Lint1 } else { Pin::Lint0 };
                Self::Lint(pin, bool::arbitrary(bytes)?)
            }
            18 => Self::Local(*bytes.choose(&LvtEntry::ALL)?),
            19 => Self::RegisterUpcall(u8::arbitrary(bytes)?),
            20 => Self::NotifyUpcall,
            21 => Self::ClearPending,
            22 | 23 => Self::Time(u64::from(u16::arbitrary(bytes)?)),
            24 => Self::Time(u64::arbitrary(bytes)?),
            25 | 26 => Self::Settle,
            27 => Self::Acknowledge,
            28 => Self::Move,
            29 => Self::Reset,
            30 => Self::Init,
            // Software enable is the door to everything else.
            _ => Self::Store(0xf0, Width::Dword, 0x1ff),
        })
    }

    /// And what a processor may say that has gone wrong, or a page that was scribbled on have it say.
    pub(super) fn take_any(bytes: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u8::arbitrary(bytes)? % 8 {
            0 => Self::AfterWrite(register(bytes)?, value(bytes)? as u32),
            1 => Self::AfterEoi(u8::arbitrary(bytes)?),
            2 => Self::Announce(u8::arbitrary(bytes)?),
            _ => Self::take(bytes)?,
        })
    }
}

/// What is asserted of each notification; the caller knows where its vCPUs are.
pub(super) type Told<'t> = &'t mut dyn FnMut(usize, Notify);

/// Does `op` to vCPU `index` of `vm` and carries out what it asks for.
pub(super) fn apply<'s, I: Inbox + 's>(
    vm: &Vm<'s, I>,
    apic: &mut LocalApic<'s, I>,
    index: usize,
    pending: &AtomicU8,
    now: &mut u64,
    op: Op,
    told: Told<'_>,
) {
    let slot = apic.slot();
    match op {
        Op::Load(offset, width) => {
            let read = apic.read_mmio(offset, width, *now);
            assert_eq!(read & !width.mask(), 0, "more than was asked for");
        }
        Op::Store(offset, width, value) => {
            let effect = apic.write_mmio(offset, width, value & width.mask(), *now);
            carry_out(vm, index, effect, told);
        }
        Op::Rdmsr(msr) => {
            if let Ok(value) = apic.read_msr(msr, *now) {
                let wide = matches!(msr, 0x1b | 0x6e0 | 0x830);
                assert!(wide || value <= u64::from(u32::MAX), "RDMSR {msr:#x}: {value:#x}");
            }
        }
        Op::Wrmsr(msr, value) => {
            if let Ok(effect) = apic.write_msr(msr, value, *now) {
                carry_out(vm, index, effect, told);
            }
        }
        Op::Cr8(None) => assert!(apic.read_cr8() < 16, "CR8 has four bits"),
        Op::Cr8(Some(value)) => {
            if let Ok(effect) = apic.write_cr8(value, *now) {
                carry_out(vm, index, effect, told);
            }
        }
        Op::AfterWrite(register, value) => {
            slot.page().write(register, value);
            let effect = apic.after_write(register, *now);
            carry_out(vm, index, effect, told);
        }
        Op::AfterEoi(raw) => {
            if let Some(vector) = Vector::new(raw) {
                let effect = apic.after_virtual_eoi(vector);
                carry_out(vm, index, effect, told);
            }
        }
        Op::Request(vector, trigger) => {
            let receipt = slot.request(vector, trigger);
            legal(receipt, vector);
            told(index, receipt.notify);
        }
        Op::Receive(delivery) => told(index, slot.receive(delivery).notify),
        Op::Msi(address, data) => {
            let (address, data) = (MsiAddress::from_bits(address), MsiData::from_bits(data));
            if let Ok(Some(message)) = Message::from_msi(address, data, MsiDestination::Narrow) {
                send(vm, &message, None, told);
            }
        }
        Op::Lint(pin, level) => told(index, slot.set_lint(pin, level)),
        Op::Local(entry) => told(index, slot.local_event(entry).notify),
        Op::Announce(id) => {
            let address = vlapic_core::Address::Narrow(id);
            let destination = vlapic_core::Destination::Logical(address);
            let told_of: Vec<_> = vm.announce(destination, Some(index)).collect();
            assert!(told_of.len() <= vm.slots().len(), "each at most once");
        }
        Op::RegisterUpcall(vector) => match slot.register_upcall(vector, pending) {
            Ok(notify) => told(index, notify),
            Err(_) => assert!(vector < 16, "vector {vector:#x} is legal"),
        },
        Op::NotifyUpcall => told(index, slot.notify_upcall(pending)),
        Op::ClearPending => pending.store(0, Ordering::SeqCst),
        Op::Time(ticks) => *now = now.saturating_add(ticks),
        Op::Settle => settle(apic, *now),
        Op::Acknowledge => {
            let spurious = slot.page().svr().spurious_vector();
            let nominated = apic.nominate();
            let vector = apic.acknowledge();
            assert!(nominated.is_some() || vector == spurious, "{vector:#x} from nowhere");
        }
        Op::Init => {
            told(index, slot.receive(Delivery::Init).notify);
            settle(apic, *now);
        }
        Op::Reset => apic.reset(index == 0),
        Op::Move => round_trip(apic, *now),
    }
}

/// Takes events and interrupts until there is nothing, which must be soon: each vector at most once, as nothing ends
/// one here.
fn settle<I: Inbox>(apic: &mut LocalApic<'_, I>, now: u64) {
    let mut events = 0;
    while apic.take_event().is_some() {
        events += 1;
        assert!(events < 16, "events without end");
    }
    let _ = apic.prepare(now);
    let mut vectors = 0;
    while let Some(vector) = apic.nominate() {
        assert!(vector.get() >= 16, "vector {vector} is delivered");
        assert!(vector.class() > apic.processor_priority() & 0xf0, "{vector} against PPR");
        assert!(apic.commit(vector), "who is nominated is there");
        vectors += 1;
        assert!(vectors <= 16, "more than one of each class");
    }
}

fn legal(receipt: Receipt, vector: u8) {
    let accepted = receipt.outcome == Outcome::Accepted;
    assert!(vector >= 16 || !accepted, "vector {vector:#x} is accepted");
}

fn carry_out<'s, I: Inbox + 's>(vm: &Vm<'s, I>, index: usize, effect: Effect, told: Told<'_>) {
    match effect {
        Effect::Ipi(message) => send(vm, &message, Some(index), told),
        Effect::Announce(message) => {
            for (target, notify) in vm.announce(message.destination(), Some(index)) {
                told(target, notify);
            }
        }
        Effect::EndOfInterrupt(vector) => assert!(vector.get() >= 16, "EOI of {vector}"),
        _ => {}
    }
}

/// Delivers a message; nobody gets it twice.
pub(super) fn send<'s, I: Inbox + 's>(
    vm: &Vm<'s, I>,
    message: &Message,
    sender: Option<usize>,
    told: Told<'_>,
) {
    let receipts: Vec<_> = vm.send(message, sender).collect();
    assert!(receipts.len() <= vm.slots().len(), "{} receipts", receipts.len());
    for pair in receipts.windows(2) {
        assert!(pair[0].0 < pair[1].0, "a target twice");
    }
    for (target, receipt) in receipts {
        if let Delivery::Fixed { vector, .. } | Delivery::LowestPriority { vector, .. } =
            message.delivery()
        {
            legal(receipt, vector);
        }
        told(target, receipt.notify);
    }
}

/// Out and in again is the same APIC: always possible, and a second time changes nothing.
fn round_trip<I: Inbox>(apic: &mut LocalApic<'_, I>, now: u64) {
    let mut first = [0; STATE_LENGTH];
    apic.export_state(now, &mut first);
    let imported = apic.import_state(now, &first);
    assert!(imported.is_ok(), "{imported:?}");
    let mut second = [0; STATE_LENGTH];
    apic.export_state(now, &mut second);
    let again = apic.import_state(now, &second);
    assert!(again.is_ok(), "{again:?}");
    let mut third = [0; STATE_LENGTH];
    apic.export_state(now, &mut third);
    assert_eq!(third, second, "what was put right once is right");
}

/// Whether the APIC is one that a guest can have brought about: nothing has to be put right in it.
pub(super) fn is_sound<I: Inbox>(apic: &mut LocalApic<'_, I>, now: u64) {
    use vlapic_core::state::Correction;
    let mut state = [0; STATE_LENGTH];
    apic.export_state(now, &mut state);
    let corrections = apic.import_state(now, &state);
    let found: Vec<_> = corrections.map(|found| found.iter().collect()).unwrap_or_default();
    let none = found.iter().all(|&one| one == Correction::ClassInServiceTwice);
    assert!(corrections.is_ok() && none, "{corrections:?}");
}

/// Pages and pending bytes of a VM.
#[derive(Debug)]
pub(super) struct Memory<const N: usize> {
    pub(super) pages: [ApicPage; N],
    pub(super) pending: [AtomicU8; N],
}

impl<const N: usize> Memory<N> {
    pub(super) fn new() -> Self {
        Self { pages: [const { ApicPage::new() }; N], pending: [const { AtomicU8::new(0) }; N] }
    }

    pub(super) fn slots(&self, ids: [u32; N], profile: Profile) -> [Slot<'_, DirectInbox>; N] {
        let mut index = 0;
        ids.map(|id| {
            index += 1;
            Slot::new(&self.pages[index - 1], id, profile, DirectInbox)
        })
    }

    /// Every word of every page.
    pub(super) fn words(&self) -> Vec<u32> {
        let words = self.pages.iter().flat_map(|page| page.words());
        words.map(|word| word.load(Ordering::Relaxed)).collect()
    }
}
