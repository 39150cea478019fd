//! A guest that runs on a core.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::{Memory, MsrLeak, Page};

use super::capability::Capability;
use super::controls::{Controls, Mode};
use super::doorbell::Doorbells;
use super::exit::{VmExit, code};
use super::knobs::{Knobs, TprAtVmrun};
use super::nested::{NestedPages, Tlb};
use super::operation::Operation;
use super::page::offset;
use super::vmcb::{Vmcb, control, field};

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// What belongs to the core and outlives a guest.
#[derive(Debug, Default)]
pub(super) struct Silicon {
    pub(super) tlb: Tlb,
    pub(super) physical_interrupts: BTreeSet<u8>,
    pub(super) host_interrupt_flag: bool,
    pub(super) host_cr8: u8,
    pub(super) leaks: Vec<MsrLeak>,
}

/// What surrounds every core of a machine.
#[derive(Debug, Clone)]
pub(super) struct Surroundings<'m> {
    pub(super) memory: Arc<Memory<'m>>,
    pub(super) doorbells: Arc<Doorbells>,
    pub(super) nested: Arc<NestedPages>,
    pub(super) capability: Capability,
    pub(super) knobs: Knobs,
}

/// What the core holds while a guest runs.
#[derive(Debug)]
pub(super) struct Guest<'m> {
    pub(super) controls: Controls,
    pub(super) page: Page<'m>,
    pub(super) around: Surroundings<'m>,
    /// The task priority that counts; V_TPR is its upper half.
    pub(super) tpr: u8,
    /// A request in IRR was found to be above PPR, and the guest takes it when it can be interrupted.
    pub(super) recognized: bool,
    /// A doorbell or VMRUN asks for IRR to be looked at.
    pub(super) evaluation_due: bool,
    pub(super) virtual_irq: bool,
    pub(super) nmi_pending: bool,
    pub(super) nmi_mask: bool,
    pub(super) interrupt_flag: bool,
    pub(super) shadow: bool,
    pub(super) halted: bool,
    pub(super) rip: u64,
    pub(super) instruction_length: u64,
    pub(super) dfr_at_vmrun: u32,
    pub(super) operation: Option<Operation>,
}

impl<'m> Guest<'m> {
    /// Loads a VMCB that passed the checks.
    pub(super) fn new(vmcb: &Vmcb, around: Surroundings<'m>) -> Self {
        let controls = Controls::of(vmcb);
        let word = vmcb.get64(field::VIRTUAL_INTERRUPT);
        let page = Page::new(around.memory.clone(), controls.backing_page);
        let on = controls.mode != Mode::Off;
        let mut guest = Guest {
            controls,
            tpr: (word & control::V_TPR) as u8 * 16,
            recognized: false,
            evaluation_due: on,
            virtual_irq: word & control::V_IRQ != 0,
            nmi_pending: word & control::V_NMI != 0,
            nmi_mask: word & control::V_NMI_MASK != 0,
            interrupt_flag: vmcb.get64(field::RFLAGS) & INTERRUPT_FLAG != 0,
            shadow: vmcb.get64(field::INTERRUPT_SHADOW) & 1 != 0,
            halted: false,
            rip: vmcb.get64(field::RIP),
            instruction_length: 0,
            dfr_at_vmrun: if on { page.load(offset::DFR) } else { 0 },
            operation: None,
            page,
            around,
        };
        if on {
            guest.load_priority();
        }
        guest
    }

    /// Settles where the task priority comes from, and PPR with it.
    fn load_priority(&mut self) {
        let in_page = self.page.load(offset::TPR) as u8;
        match self.around.knobs.tpr_at_vmrun {
            // Bits 3:0 are only in the page; they count where the rest agrees.
            TprAtVmrun::VTpr if in_page >> 4 == self.tpr >> 4 => self.tpr = in_page,
            TprAtVmrun::VTpr => {}
            TprAtVmrun::VTprIntoPage if in_page >> 4 == self.tpr >> 4 => self.tpr = in_page,
            TprAtVmrun::VTprIntoPage | TprAtVmrun::VTprOverPage => {
                self.page.store(offset::TPR, self.tpr.into());
            }
            TprAtVmrun::Page => self.tpr = in_page,
        }
        if self.around.knobs.vmrun_computes_ppr {
            self.update_ppr();
        }
    }

    /// Saves guest state at an exit.
    pub(super) fn save(&self, vmcb: &mut Vmcb, exit: VmExit) {
        let changing = control::V_TPR | control::V_IRQ | control::V_NMI | control::V_NMI_MASK;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        vmcb.clear_bits64(field::VIRTUAL_INTERRUPT, changing);
        vmcb.set_bits64(
            field::VIRTUAL_INTERRUPT,
            u64::from(self.tpr >> 4)
                | bit(self.virtual_irq, control::V_IRQ)
                | bit(self.nmi_pending, control::V_NMI)
                | bit(self.nmi_mask, control::V_NMI_MASK),
        );
        let shadow = vmcb.get64(field::INTERRUPT_SHADOW) & !1;
        vmcb.set64(field::INTERRUPT_SHADOW, shadow | u64::from(self.shadow));
        let flags = vmcb.get64(field::RFLAGS) & !INTERRUPT_FLAG;
        vmcb.set64(field::RFLAGS, flags | bit(self.interrupt_flag, INTERRUPT_FLAG));
        vmcb.set64(field::RIP, self.rip);
        vmcb.set64(field::NEXT_RIP, self.next_rip(exit));
        vmcb.set64(field::EXIT_CODE, exit.code);
        vmcb.set64(field::EXIT_INFO_1, exit.info_1);
        vmcb.set64(field::EXIT_INFO_2, exit.info_2);
        vmcb.set64(field::EXIT_INT_INFO, 0);
        vmcb.clear_bits64(field::EVENT_INJECTION, 1 << 31);
    }

    /// Where the instruction that exited ends, for the exits that say so.
    fn next_rip(&self, exit: VmExit) -> u64 {
        let said = match exit.code {
            code::INCOMPLETE_IPI | code::NO_ACCELERATION => {
                self.around.knobs.next_rip_at_avic_exits
            }
            code::INTR | code::NMI | code::VINTR | code::NESTED_PAGE_FAULT => false,
            _ => true,
        };
        match (said, exit.trap) {
            (false, _) => 0,
            (true, true) => self.rip,
            (true, false) => self.rip.wrapping_add(self.instruction_length),
        }
    }
}
