//! Events for the guest, and events for the host that came while the guest ran.

use x86::vmx::vmcs::control::{self, ExitControls, PinbasedControls, PrimaryControls};
use x86::vmx::vmcs::guest;

use super::exit::EventInfo;
use super::vcpu::Current;
use super::{Exit, Reason, VmxError};
use crate::machine::interrupts;

/// An event that VM entry delivers through the guest's IDT (SDM Vol. 3C 27.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// As if the guest's interrupt controller had sent it. The guest must be able to take it.
    ExternalInterrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// General protection, with error code 0.
    GeneralProtection,
}

/// What the guest does between entry and exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Executes instructions.
    Active = 0,
    /// Has executed HLT, which did not exit.
    Halted = 1,
    /// Has had a triple fault.
    Shutdown = 2,
    /// Waits for a startup IPI: nothing else, NMIs included, ends that.
    WaitForSipi = 3,
}

impl Current<'_> {
    /// Delivers `event` at the next entry, which must be the one that follows.
    pub(crate) fn inject(&mut self, event: Event) -> Result<(), VmxError> {
        const VALID: u32 = 1 << 31;
        const ERROR_CODE: u32 = 1 << 11;
        let word = VALID
            | match event {
                Event::ExternalInterrupt(vector) => u32::from(vector),
                Event::Nmi => 2 << 8 | 2,
                Event::GeneralProtection => 3 << 8 | ERROR_CODE | 13,
            };
        self.vmcs.set(control::VMENTRY_EXCEPTION_ERR_CODE, 0)?;
        self.vmcs.set(control::VMENTRY_INTERRUPTION_INFO_FIELD, u64::from(word))
    }

    /// The guest's RFLAGS.IF.
    pub(crate) fn interrupts_enabled(&self) -> Result<bool, VmxError> {
        const IF: u64 = 1 << 9;
        Ok(self.vmcs.get(guest::RFLAGS)? & IF != 0)
    }

    /// Whether the next entry injects an event already.
    pub(crate) fn has_injection(&self) -> Result<bool, VmxError> {
        Ok(self.vmcs.get(control::VMENTRY_INTERRUPTION_INFO_FIELD)? & 1 << 31 != 0)
    }

    /// Delivers again the event whose delivery `exit` cut short, if there was one. Says whether there was.
    pub(crate) fn reinject(&mut self, exit: &Exit) -> Result<bool, VmxError> {
        let EventInfo { word, error_code } = exit.idt_vectoring;
        if !exit.idt_vectoring.is_valid() {
            return Ok(false);
        }
        // Bit 12 is undefined in IDT-vectoring information and must be 0 on entry.
        self.vmcs.set_all(&[
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, u64::from(word & !(1 << 12))),
            (control::VMENTRY_INSTRUCTION_LEN, u64::from(exit.instruction_length)),
        ])?;
        if exit.idt_vectoring.has_error_code() {
            self.vmcs.set(control::VMENTRY_EXCEPTION_ERR_CODE, u64::from(error_code))?;
        }
        Ok(true)
    }

    /// Whether an external interrupt could be injected now: IF is 1, no STI or MOV SS holds it off, nothing else is to be
    /// injected, and the guest does not wait for a startup IPI.
    pub(crate) fn can_take_interrupt(&self) -> Result<bool, VmxError> {
        const BLOCKED_BY_STI_OR_MOV_SS: u64 = 0b11;
        Ok(self.interrupts_enabled()?
            && self.vmcs.get(guest::INTERRUPTIBILITY_STATE)? & BLOCKED_BY_STI_OR_MOV_SS == 0
            && self.vmcs.get(control::VMENTRY_INTERRUPTION_INFO_FIELD)? & 1 << 31 == 0
            && matches!(self.activity()?, Activity::Active | Activity::Halted))
    }

    /// Chooses whether the guest exits as soon as it could take an interrupt.
    pub(crate) fn set_interrupt_window(&mut self, on: bool) -> Result<(), VmxError> {
        let bit = PrimaryControls::INTERRUPT_WINDOW_EXITING.bits();
        self.vmcs.assign(control::PRIMARY_PROCBASED_EXEC_CONTROLS, bit, on)
    }

    /// Chooses whether HLT exits.
    pub(crate) fn set_hlt_exiting(&mut self, on: bool) -> Result<(), VmxError> {
        let bit = PrimaryControls::HLT_EXITING.bits();
        self.vmcs.assign(control::PRIMARY_PROCBASED_EXEC_CONTROLS, bit, on)
    }

    /// Bounds the guest's turn, or lets it run on.
    ///
    /// The count goes down by 1 for each 2^[`preemption_timer_shift`](super::Capability::preemption_timer_shift) TSC
    /// ticks in guest mode. What is left at an exit is kept for the next entry where the processor saves it.
    pub(crate) fn set_preemption_timer(&mut self, ticks: Option<u32>) -> Result<(), VmxError> {
        let bit = PinbasedControls::VMX_PREEMPTION_TIMER.bits();
        let save = ExitControls::SAVE_VMX_PREEMPTION_TIMER.bits();
        if let Some(ticks) = ticks {
            self.capability().pin.word(bit, 0)?;
            self.vmcs.set(guest::VMX_PREEMPTION_TIMER_VALUE, u64::from(ticks))?;
        }
        self.vmcs.assign(control::PINBASED_EXEC_CONTROLS, bit, ticks.is_some())?;
        if self.capability().saves_preemption_timer() {
            self.vmcs.assign(control::VMEXIT_CONTROLS, save, ticks.is_some())?;
        }
        Ok(())
    }

    /// What the guest was doing at the last exit.
    pub(crate) fn activity(&self) -> Result<Activity, VmxError> {
        Ok(match self.vmcs.get(guest::ACTIVITY_STATE)? {
            0 => Activity::Active,
            1 => Activity::Halted,
            2 => Activity::Shutdown,
            _ => Activity::WaitForSipi,
        })
    }

    /// What it does at the next entry.
    pub(crate) fn set_activity(&mut self, activity: Activity) -> Result<(), VmxError> {
        self.vmcs.set(guest::ACTIVITY_STATE, activity as u64)
    }

    /// Moves RIP past the instruction that caused a fault-like `exit`.
    pub(crate) fn skip_instruction(&mut self, exit: &Exit) -> Result<(), VmxError> {
        self.skip(u64::from(exit.instruction_length))
    }

    /// Moves RIP past an instruction of `length` bytes. It has been executed, so STI and MOV SS hold off nothing any more.
    pub(crate) fn skip(&mut self, length: u64) -> Result<(), VmxError> {
        const BLOCKED_BY_STI_OR_MOV_SS: u32 = 0b11;
        let rip = self.vmcs.get(guest::RIP)?;
        self.vmcs.set(guest::RIP, rip.wrapping_add(length))?;
        self.vmcs.assign(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_STI_OR_MOV_SS, false)
    }

    /// Gives the host the interrupt or NMI that ended the guest's turn. Says whether that is what `exit` was.
    ///
    /// The exit has already taken the vector from the physical APIC (acknowledge interrupt on exit), so its handler is
    /// called here, and the EOI follows as for any interrupt.
    pub(crate) fn dispatch_interrupt(&mut self, exit: &Exit) -> bool {
        const NMI: u8 = 2;
        match exit.reason {
            Reason::ExternalInterrupt => {
                if let Some(vector) = exit.acknowledged_vector() {
                    interrupts::deliver(vector);
                }
                true
            }
            Reason::ExceptionOrNmi if exit.interruption.kind() == NMI => {
                // SAFETY: the host's IDT has a handler for vector 2; INT 2 enters it as an NMI would.
                unsafe { core::arch::asm!("int 2") };
                true
            }
            _ => false,
        }
    }
}
