//! Plain emulation programmed into a VMCB: no help from the processor but injection.

use core::convert::Infallible;

use avic::{Exit, Field, InterruptControl, Vmcb};
use vlapic_core::{
    Backend, DirectInbox, Emulated, Entry, EntryInput, ExitOutcome, Injection, LocalApic,
};

use crate::injection;

/// 00C bit 4, in the upper half of word 008.
const INTERCEPT_V_INTR: u64 = 1 << 36;

/// [`Emulated`], which knows of no processor, and the VMCB that does what it asks for. CR8 accesses exit: that is the
/// hypervisor's to set up.
#[derive(Debug)]
pub struct Plain<'s>(pub Emulated<'s>);

impl<'s, V: Vmcb> Backend<'s, V> for Plain<'s> {
    type Inbox = DirectInbox;
    type Exit = Exit;
    type Error = Infallible;

    fn apic(&self) -> &LocalApic<'s, DirectInbox> {
        self.0.apic()
    }

    fn apic_mut(&mut self) -> &mut LocalApic<'s, DirectInbox> {
        self.0.apic_mut()
    }

    fn before_entry(&mut self, vmcb: &mut V, input: EntryInput) -> Result<Entry, Infallible> {
        let mut wanted = Injection::default();
        let Ok(entry) = self.0.before_entry(&mut wanted, input);
        if let Some(vector) = wanted.vector {
            injection::inject(vmcb, vector.get());
        }
        let control = InterruptControl::from_bits(vmcb.load(CONTROL))
            .set(InterruptControl::V_INTR_PRIO, false)
            .set(InterruptControl::V_IRQ | InterruptControl::V_IGN_TPR, wanted.window)
            .with_v_tpr(wanted.cr8);
        vmcb.store(CONTROL, control.bits());
        let intercepts = vmcb.load(INTERCEPTS) & !INTERCEPT_V_INTR;
        let window = if wanted.window { INTERCEPT_V_INTR } else { 0 };
        vmcb.store(INTERCEPTS, intercepts | window);
        Ok(entry)
    }

    fn after_exit(&mut self, _: &mut V, _: &Exit, _: u64) -> Result<ExitOutcome, Infallible> {
        Ok(ExitOutcome::NotOurs)
    }

    fn block(&mut self, input: EntryInput) -> bool {
        self.0.block(input)
    }

    fn preempt(&mut self) {
        self.0.preempt();
    }
}

const CONTROL: u16 = Field::InterruptControl as u16;
const INTERCEPTS: u16 = Field::Intercepts as u16;
