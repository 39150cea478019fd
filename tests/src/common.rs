//! What every hypervisor of these tests does in the same way, whatever its processor: accesses that are emulated, events
//! that are carried out, effects that are told to other vCPUs.

use vlapic_core::{Effect, Event, Fault, Inbox, LocalApic, Notify, Vm};

use crate::hypervisor::{Answer, Op};
use crate::migrate::Doing;

/// Does an instruction for the guest that exited before it was done: its answer, and what is left to do. HLT, STI and CLI
/// are the caller's.
pub(crate) fn emulate<I: Inbox>(apic: &mut LocalApic<'_, I>, op: Op, now: u64) -> (Answer, Effect) {
    let written = match op {
        Op::Load { offset, width } => {
            return (Answer::Value(apic.read_mmio(offset, width, now)), Effect::None);
        }
        Op::Rdmsr(msr) => {
            let read = apic.read_msr(msr, now);
            return (read.map_or(Answer::GeneralProtection, Answer::Value), Effect::None);
        }
        Op::ReadCr8 => return (Answer::Value(apic.read_cr8()), Effect::None),
        Op::Store { offset, width, value } => Ok(apic.write_mmio(offset, width, value, now)),
        Op::Wrmsr(msr, value) => apic.write_msr(msr, value, now),
        Op::WriteCr8(value) => apic.write_cr8(value, now),
        Op::SetInterruptFlag(_) | Op::Halt | Op::EnableAndHalt => Ok(Effect::None),
    };
    match written {
        Ok(effect) => (Answer::Done, effect),
        Err(Fault::GeneralProtection) => (Answer::GeneralProtection, Effect::None),
        Err(fault) => unreachable!("a fault that no hypervisor here knows: {fault:?}"),
    }
}

/// What a vCPU does once it has taken `event`; `None` if that does not change. Its RFLAGS.IF is set where it begins anew.
pub(crate) fn carry_out_event(event: Event, interrupt_flag: &mut bool) -> Option<Doing> {
    match event {
        Event::Init { waits: true } => Some(Doing::Waiting),
        Event::Init { .. } | Event::Startup { .. } => {
            *interrupt_flag = true;
            Some(Doing::Running)
        }
        Event::Nmi => Some(Doing::Running),
        _ => None,
    }
}

/// Whom `effect`, which vCPU `sender` has had, tells of something, and how.
pub(crate) fn told<I: Inbox>(
    vm: Vm<'_, I>,
    sender: usize,
    effect: &Effect,
) -> Vec<(usize, Notify)> {
    match effect {
        Effect::Ipi(message) => vm
            .send(message, Some(sender))
            .map(|(target, receipt)| (target, receipt.notify))
            .collect(),
        Effect::Announce(message) => vm.announce(message.destination(), Some(sender)).collect(),
        _ => Vec::new(),
    }
}
