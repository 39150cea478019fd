//! TPR, PPR, recognition and delivery of requests, and EOI.

use super::controls::Mode;
use super::exit::{Outcome, VmExit, code};
use super::guest::{Guest, Silicon};
use super::operation::{Operation, Progress};
use super::page::offset;
use super::vmcb::intercept;

impl Guest<'_> {
    /// A write of the TPR register.
    pub(super) fn write_tpr(&mut self, value: u32) -> Progress {
        self.page.store(offset::TPR, value);
        self.tpr = value as u8;
        Progress::Next(Operation::Prioritise)
    }

    /// MOV from CR8.
    pub(super) fn read_cr8(&mut self, silicon: &Silicon) -> Progress {
        if self.controls.cr_intercepts & intercept::CR8_READ != 0 {
            return Progress::exit(VmExit::fault(code::CR8_READ, 0, 0));
        }
        let value = if self.virtualizes_cr8() { self.tpr >> 4 } else { silicon.host_cr8 };
        Progress::Done(Outcome::Value(value.into()))
    }

    /// MOV to CR8.
    pub(super) fn write_cr8(&mut self, silicon: &mut Silicon, value: u64) -> Progress {
        if self.controls.cr_intercepts & intercept::CR8_WRITE != 0 {
            return Progress::exit(VmExit::fault(code::CR8_WRITE, 0, 0));
        }
        if value >> 4 != 0 {
            return Progress::Done(Outcome::GeneralProtection);
        }
        let class = value as u8;
        if !self.virtualizes_cr8() {
            silicon.host_cr8 = class;
            return Progress::DONE;
        }
        if self.controls.mode == Mode::Off {
            self.tpr = class << 4;
            return Progress::DONE;
        }
        self.write_tpr(u32::from(class) << 4)
    }

    fn virtualizes_cr8(&self) -> bool {
        self.controls.mode != Mode::Off || self.controls.interrupt_masking
    }

    /// A write of the EOI register. The value lands in the page as that of any other register.
    pub(super) fn write_eoi(&mut self, value: u32) -> Progress {
        let highest = self.page.highest(offset::ISR);
        let level = highest.is_some_and(|vector| self.page.has_vector(offset::TMR, vector));
        let trap = self.around.knobs.level_eoi_is_a_trap;
        if trap || !level {
            self.page.store(offset::EOI, value);
        }
        let Some(vector) = highest else {
            return Progress::DONE;
        };
        if !level {
            self.page.clear_vector(offset::ISR, vector);
            return Progress::Next(Operation::Prioritise);
        }
        if self.around.knobs.level_eoi_clears_isr {
            self.page.clear_vector(offset::ISR, vector);
            self.update_ppr();
        }
        let exit = VmExit::no_acceleration(offset::EOI, true, Some(vector), trap);
        let exit = self.with_undefined_bits(exit);
        Progress::Next(Operation::Trap(exit))
    }

    /// PPR becomes the higher of TPR and the class in service; where they are equal, TPR with its low bits.
    pub(super) fn update_ppr(&mut self) {
        let in_service = self.page.highest(offset::ISR).unwrap_or(0);
        let ppr = if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 };
        self.page.store(offset::PPR, ppr.into());
    }

    /// Looks at IRR, and recognizes its highest request if that is above PPR.
    ///
    /// Hardware does so at VMRUN, at a doorbell and when the guest changes TPR, ISR or its own IRR. A bit that appears
    /// in IRR by itself goes unnoticed until then.
    pub(super) fn evaluate(&mut self) {
        self.evaluation_due = false;
        self.recognized = self.above_ppr().is_some();
    }

    /// The highest request, if its class is above that of PPR.
    fn above_ppr(&self) -> Option<u8> {
        let ppr = self.page.load(offset::PPR) as u8;
        self.page.highest(offset::IRR).filter(|vector| vector >> 4 > ppr >> 4)
    }

    /// Delivers the highest request, if there still is one above PPR.
    pub(super) fn deliver(&mut self) -> Option<u8> {
        let vector = self.above_ppr();
        if let Some(vector) = vector {
            self.page.clear_vector(offset::IRR, vector);
            self.page.set_vector(offset::ISR, vector);
            self.update_ppr();
            self.enter_handler();
        }
        self.evaluate();
        vector
    }

    /// The guest goes through an interrupt gate of its IDT.
    pub(super) fn enter_handler(&mut self) {
        self.halted = false;
        self.interrupt_flag = false;
        self.shadow = false;
    }

    /// HLT.
    pub(super) fn hlt(&mut self) -> Progress {
        if self.controls.intercepts_3 & intercept::HLT != 0 {
            return Progress::exit(VmExit::fault(code::HLT, 0, 0));
        }
        let idle_intercept = self.controls.intercepts_5 & intercept::IDLE_HLT != 0;
        if idle_intercept && !self.has_virtual_interrupt_for_hlt() {
            return Progress::exit(VmExit::fault(code::IDLE_HLT, 0, 0));
        }
        self.halted = true;
        Progress::DONE
    }

    fn has_virtual_interrupt_for_hlt(&mut self) -> bool {
        if self.nmi_pending && self.controls.virtual_nmi {
            return true;
        }
        if self.controls.mode == Mode::Off {
            return self.virtual_irq;
        }
        if self.evaluation_due {
            self.evaluate();
        }
        let any = self.around.knobs.idle_hlt_ignores_priority;
        self.recognized || any && self.page.highest(offset::IRR).is_some()
    }

    /// VMMCALL.
    pub(super) fn vmmcall(&mut self) -> Progress {
        if self.controls.intercepts_4 & intercept::VMMCALL != 0 {
            return Progress::exit(VmExit::fault(code::VMMCALL, 0, 0));
        }
        Progress::Done(Outcome::GeneralProtection)
    }
}
