//! Events between guest instructions.

use super::controls::Mode;
use super::exit::{Outcome, VmExit, code};
use super::guest::{Guest, Silicon};
use super::vmcb::intercept;

impl Guest<'_> {
    /// An instruction boundary: the pending event with the highest priority happens, if any.
    pub(super) fn poll(&mut self, silicon: &mut Silicon) -> Outcome {
        assert!(self.operation.is_none(), "an instruction is under way");
        if self.evaluation_due {
            self.evaluate();
        }
        if self.physical_interrupt_exits(silicon) {
            return Outcome::Exit(VmExit::fault(code::INTR, 0, 0));
        }
        let blocked = self.shadow || !self.controls.virtual_gif;
        if self.controls.virtual_nmi && self.nmi_pending && !self.nmi_mask && !blocked {
            self.nmi_pending = false;
            self.nmi_mask = true;
            self.enter_handler();
            return Outcome::DeliveredNmi;
        }
        if blocked || !self.interrupt_flag {
            return Outcome::Nothing;
        }
        match self.controls.mode {
            Mode::Off => self.virtual_interrupt(),
            _ => self.accelerated_interrupt(),
        }
    }

    fn accelerated_interrupt(&mut self) -> Outcome {
        if !self.recognized {
            return Outcome::Nothing;
        }
        if self.window_exits() && self.around.knobs.vintr_intercept_works_with_avic {
            return Outcome::Exit(VmExit::fault(code::VINTR, 0, 0));
        }
        self.deliver().map_or(Outcome::Nothing, Outcome::Delivered)
    }

    /// The interrupt that software put into the VMCB, which counts without AVIC only.
    fn virtual_interrupt(&mut self) -> Outcome {
        let above_tpr = self.controls.ignore_tpr || self.controls.injected_priority > self.tpr >> 4;
        if !self.virtual_irq || !above_tpr {
            return Outcome::Nothing;
        }
        if self.window_exits() {
            return Outcome::Exit(VmExit::fault(code::VINTR, 0, 0));
        }
        self.virtual_irq = false;
        self.enter_handler();
        Outcome::Delivered(self.controls.injected_vector)
    }

    fn window_exits(&self) -> bool {
        self.controls.intercepts_3 & intercept::VINTR != 0
    }

    /// Whether a physical interrupt is pending and leaves the guest.
    fn physical_interrupt_exits(&self, silicon: &Silicon) -> bool {
        let enabled = if self.controls.interrupt_masking {
            silicon.host_interrupt_flag || self.around.knobs.intr_ignores_host_if
        } else {
            self.interrupt_flag
        };
        let intercepted = self.controls.intercepts_3 & intercept::INTR != 0;
        !silicon.physical_interrupts.is_empty() && intercepted && enabled
    }
}
