//! What the guest does and what it sees.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU8;

use vlapic_core::{Effect, Inbox, Receipt, Slot, Trigger, Width};

use crate::Apic;

/// The vector of the guest's upcalls.
pub(crate) const UPCALL: u8 = 0xf3;
/// The vector of NMIs.
pub(crate) const NMI: u8 = 2;

/// An instruction of the guest, or something that happens beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Store(u16, u32),
    Load(u16),
    WriteMsr(u32, u64),
    ReadMsr(u32),
    InterruptsOn,
    /// HLT; while it sleeps a device requests this vector.
    Halt(u8),
    /// Time passes.
    Compute(u64),
    Finish,
    /// A device, on another CPU.
    Device(u8, Trigger),
    /// An NMI, from another CPU.
    Nmi,
    /// An event, from another CPU.
    Upcall,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) taken: Vec<u8>,
    pub(crate) ended: Vec<u8>,
    pub(crate) kicked: Vec<usize>,
    pub(crate) read: Vec<u64>,
    pub(crate) sleeps: usize,
}

/// The guest of vCPU 0.
pub(crate) struct Guest<'s, I> {
    pub(crate) slot: &'s Slot<'s, I>,
    pub(crate) pending: &'s AtomicU8,
    pub(crate) program: VecDeque<Step>,
    /// The instruction that was executed last.
    pub(crate) current: Option<Step>,
    pub(crate) seen: Seen,
    pub(crate) finished: bool,
}

impl<'s, I: Inbox> Guest<'s, I> {
    pub(crate) fn new(slot: &'s Slot<'s, I>, pending: &'s AtomicU8, program: Vec<Step>) -> Self {
        let _ = slot.register_upcall(UPCALL, pending).expect("a legal vector");
        let (program, seen) = (program.into(), Seen::default());
        Self { slot, pending, program, current: None, seen, finished: false }
    }

    /// Does the instruction that exited before it was done.
    pub(crate) fn emulate(&mut self, apic: &mut Apic<'s, I>, now: u64) -> Effect {
        match self.current.take().expect("an instruction made the access") {
            Step::Store(offset, value) => apic.write_mmio(offset, Width::Dword, value.into(), now),
            Step::Load(offset) => {
                self.seen.read.push(apic.read_mmio(offset, Width::Dword, now));
                Effect::None
            }
            Step::WriteMsr(msr, value) => apic.write_msr(msr, value, now).expect("no #GP"),
            Step::ReadMsr(msr) => {
                self.seen.read.push(apic.read_msr(msr, now).expect("no #GP"));
                Effect::None
            }
            other => unreachable!("{other:?} is no access"),
        }
    }

    /// A device's interrupt.
    pub(crate) fn request(&self, vector: u8, trigger: Trigger) -> Receipt {
        self.slot.request(vector, trigger)
    }
}
