//! Events for the guest, and events for the host that came while the guest ran.

use super::exit::EventInfo;
use super::vcpu::Current;
use super::vmcb::{intercept, virtual_interrupt};
use super::{Exit, Reason, SvmError};
use crate::instruction::{fetch, privileged};

/// An event that VMRUN delivers through the guest's IDT (APM Vol. 2 15.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// As if the guest's interrupt controller had sent it. The guest must be able to take it.
    ExternalInterrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// General protection, with error code 0.
    GeneralProtection,
}

impl Current<'_> {
    /// Delivers `event` at the next entry, which must be the one that follows.
    pub(crate) fn inject(&mut self, event: Event) {
        const ERROR_CODE: u64 = 1 << 11;
        self.vcpu.vmcb.control.event_injection = EventInfo::VALID
            | match event {
                Event::ExternalInterrupt(vector) => u64::from(vector),
                Event::Nmi => 2 << 8 | 2,
                Event::GeneralProtection => 3 << 8 | ERROR_CODE | 13,
            };
    }

    /// Delivers again the event whose delivery `exit` cut short, if there was one. Says whether there was.
    pub(crate) fn reinject(&mut self, exit: &Exit) -> bool {
        if exit.interrupted.is_valid() {
            self.vcpu.vmcb.control.event_injection = exit.interrupted.word;
        }
        exit.interrupted.is_valid()
    }

    /// Whether the next entry injects an event already.
    pub(crate) fn has_injection(&self) -> bool {
        self.vcpu.vmcb.control.event_injection & EventInfo::VALID != 0
    }

    /// The guest's RFLAGS.IF.
    pub(crate) fn interrupts_enabled(&self) -> bool {
        const IF: u64 = 1 << 9;
        self.vcpu.vmcb.save.rflags & IF != 0
    }

    /// Whether an external interrupt could be injected now: IF is 1, no STI or load of SS holds it off, and nothing else is
    /// to be injected.
    pub(crate) fn can_take_interrupt(&self) -> bool {
        self.interrupts_enabled()
            && self.vcpu.vmcb.control.interrupt_shadow & 1 == 0
            && !self.has_injection()
    }

    /// Chooses whether the guest exits as soon as it could take an interrupt: a virtual one of the highest priority is
    /// requested, and exits instead of being taken. Ends what [`request`](Self::request) asked for.
    pub(crate) fn set_interrupt_window(&mut self, on: bool) {
        let control = &mut self.vcpu.vmcb.control;
        control.virtual_interrupt &= !virtual_interrupt::ANY_REQUEST;
        control.intercepts[0] &= !intercept::VINTR;
        if on {
            control.virtual_interrupt |=
                virtual_interrupt::REQUEST | virtual_interrupt::IGNORE_TASK_PRIORITY;
            control.intercepts[0] |= intercept::VINTR;
        }
    }

    /// Has the guest take `vector` as soon as its IF and V_TPR allow, without an exit (V_IRQ). `None` takes that back.
    pub(crate) fn request(&mut self, vector: Option<u8>) {
        self.set_interrupt_window(false);
        if let Some(vector) = vector {
            self.vcpu.vmcb.control.virtual_interrupt |= virtual_interrupt::REQUEST
                | u64::from(vector >> 4) << virtual_interrupt::PRIORITY_SHIFT
                | u64::from(vector) << virtual_interrupt::VECTOR_SHIFT;
        }
    }

    /// Whether what was requested still waits.
    pub(crate) fn is_requested(&self) -> bool {
        self.vcpu.vmcb.control.virtual_interrupt & virtual_interrupt::REQUEST != 0
    }

    /// V_TPR: the guest's CR8.
    pub(crate) fn task_priority(&self) -> u8 {
        (self.vcpu.vmcb.control.virtual_interrupt & virtual_interrupt::TASK_PRIORITY) as u8
    }

    /// Sets V_TPR, of which four bits count.
    pub(crate) fn set_task_priority(&mut self, class: u8) {
        let word = &mut self.vcpu.vmcb.control.virtual_interrupt;
        let class = u64::from(class) & virtual_interrupt::TASK_PRIORITY;
        *word = *word & !virtual_interrupt::TASK_PRIORITY | class;
    }

    /// Chooses whether HLT exits.
    pub(crate) fn set_hlt_exiting(&mut self, on: bool) {
        let word = &mut self.vcpu.vmcb.control.intercepts[0];
        *word = if on { *word | intercept::HLT } else { *word & !intercept::HLT };
    }

    /// Bounds each turn of the guest from now on to about so many TSC ticks, or lets it run on. What ends it is an interrupt
    /// of the host's timer, so an exit with [`Reason::Interrupt`].
    pub(crate) fn set_turn(&mut self, ticks: Option<u64>) {
        self.vcpu.turn = ticks;
    }

    /// Moves RIP past the instruction that caused a fault-like `exit`.
    ///
    /// Where the processor does not say which the next instruction is, the bytes at RIP do.
    pub(crate) fn skip_instruction(&mut self, exit: &Exit) -> Result<(), SvmError> {
        let rip = self.vcpu.vmcb.save.rip;
        if self.vcpu.capability.next_rip && exit.next_rip != 0 {
            self.skip(exit.next_rip.wrapping_sub(rip));
            return Ok(());
        }
        let instruction = fetch::at(rip).and_then(|bytes| privileged::decode(&bytes));
        let instruction = instruction.ok_or(SvmError::UnknownInstruction(rip))?;
        self.skip(u64::from(instruction.length));
        Ok(())
    }

    /// Moves RIP past an instruction of `length` bytes. It has been executed, so STI and loads of SS hold off nothing any
    /// more.
    pub(crate) fn skip(&mut self, length: u64) {
        let vmcb = &mut self.vcpu.vmcb;
        vmcb.save.rip = vmcb.save.rip.wrapping_add(length);
        vmcb.control.interrupt_shadow &= !1;
    }

    /// Lets the host have the interrupt or NMI that ended the guest's turn. Says whether that is what `exit` was.
    ///
    /// The exit has not acknowledged an interrupt: it waits at the physical APIC, and is taken here. An NMI has been taken
    /// already, when STGI let it in.
    pub(crate) fn dispatch_interrupt(&mut self, exit: &Exit) -> bool {
        if exit.reason == Reason::Interrupt {
            // SAFETY: the host's IDT has a handler for each vector, and the caller's interrupts are off only to keep an entry
            // together that is over now. STI takes effect behind the NOP.
            unsafe { core::arch::asm!("sti", "nop", "cli", options(nostack)) };
        }
        matches!(exit.reason, Reason::Interrupt | Reason::Nmi)
    }
}
