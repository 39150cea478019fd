//! Guest instructions, each one step.

use super::core::Core;
use super::exit::{ExitReason, Outcome, VmExit};
use super::guest::{Activity, Guest, Shadow};
use super::mmio::Access;
use super::page::offset;
use super::physical::PhysicalApic;

/// Guest operations, each one step.
impl<'m> Core<'m> {
    /// Reads the APIC window.
    pub fn mmio_read(&mut self, offset: u32, width: u32) -> Outcome {
        self.mmio(&[Access::read(offset, width)])
    }

    /// Writes the APIC window.
    pub fn mmio_write(&mut self, offset: u32, width: u32, value: u64) -> Outcome {
        self.mmio(&[Access::write(offset, width, value)])
    }

    /// Makes several accesses to the APIC window in one instruction.
    pub fn mmio(&mut self, accesses: &[Access]) -> Outcome {
        let window = (self.address_space, self.window);
        let mut translations = std::mem::take(&mut self.translations);
        let outcome = self.instruction(|guest, physical| {
            guest.mmio(window, &mut translations, physical, accesses)
        });
        self.translations = translations;
        if outcome.exit().is_some() {
            self.flush_at_transition();
        }
        outcome
    }

    /// RDMSR.
    pub fn rdmsr(&mut self, msr: u32) -> Outcome {
        self.instruction(|guest, physical| guest.rdmsr(physical, msr))
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Outcome {
        self.instruction(|guest, physical| guest.wrmsr(physical, msr, value))
    }

    /// MOV from CR8.
    pub fn read_cr8(&mut self) -> Outcome {
        self.instruction(|guest, physical| {
            if guest.controls.cr8_store_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::CrAccess, 0x18));
            }
            let shadow = guest.controls.tpr_shadow;
            Outcome::Value(if shadow { guest.page.vtpr() >> 4 } else { physical.cr8 }.into())
        })
    }

    /// MOV to CR8.
    pub fn write_cr8(&mut self, value: u64) -> Outcome {
        self.instruction(|guest, physical| {
            if guest.controls.cr8_load_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::CrAccess, 0x08));
            }
            if value > 0xf {
                return Outcome::GeneralProtection;
            }
            if !guest.controls.tpr_shadow {
                physical.cr8 = value as u8;
                return Outcome::Done;
            }
            guest.page.store(offset::VTPR, (value as u32) << 4);
            guest.tpr_virtualization().map_or(Outcome::Done, Outcome::Exit)
        })
    }

    /// HLT: an exit, or the HLT state until something wakes the core.
    pub fn hlt(&mut self) -> Outcome {
        self.instruction(|guest, _| {
            if guest.controls.hlt_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::Hlt, 0));
            }
            guest.activity = Activity::Hlt;
            Outcome::Done
        })
    }

    /// STI: interrupts are let in after the next instruction, or at once if they already were.
    pub fn sti(&mut self) -> Outcome {
        let blocked = self.interrupt_flag() == Some(false);
        let outcome = self.set_interrupt_flag(true);
        if let Some(guest) = self.guest.as_mut().filter(|_| blocked) {
            guest.shadow = Shadow::Sti;
        }
        outcome
    }

    /// CLI, POPF or IRET: RFLAGS.IF changes with no blocking after it.
    pub fn set_interrupt_flag(&mut self, interrupt_flag: bool) -> Outcome {
        self.instruction(|guest, _| {
            guest.interrupt_flag = interrupt_flag;
            Outcome::Done
        })
    }

    /// VMCALL.
    pub fn vmcall(&mut self) -> Outcome {
        self.instruction(|_, _| Outcome::Exit(VmExit::fault(ExitReason::Vmcall, 0)))
    }

    /// CPUID.
    pub fn cpuid(&mut self) -> Outcome {
        self.instruction(|_, _| Outcome::Exit(VmExit::fault(ExitReason::Cpuid, 0)))
    }

    /// The core enters the shutdown state, as after a triple fault that does not exit.
    pub fn shut_down(&mut self) -> Outcome {
        self.instruction(|guest, _| {
            guest.activity = Activity::Shutdown;
            Outcome::Done
        })
    }

    fn instruction(
        &mut self,
        op: impl FnOnce(&mut Guest<'m>, &mut PhysicalApic) -> Outcome,
    ) -> Outcome {
        self.step(|guest, physical| {
            assert_eq!(
                guest.activity,
                Activity::Active,
                "the guest executes nothing in this state"
            );
            let outcome = op(guest, physical);
            // Blocking by STI or MOV SS ends with the instruction, unless that did not complete.
            if outcome.exit().is_none_or(|exit| exit.trap_like) {
                guest.shadow = Shadow::None;
            }
            outcome
        })
    }
}
