//! What is done after every #VMEXIT.

use vlapic_core::{
    AccessKind, Effect, Errors, ExitOutcome, Icr, Mode, Register, Vector, WindowAccess,
};

use crate::handling::Handling;
use crate::incomplete_ipi::{IncompleteCause, IncompleteIpi};
use crate::negotiate::Feature;
use crate::no_acceleration::NoAcceleration;
use crate::vcpu::Vcpu;
use crate::vmcb::{Field, Fields, Vmcb};

/// What a VMCB says of a #VMEXIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, field 070.
    pub code: u64,
    /// EXITINFO1, field 078.
    pub info_1: u64,
    /// EXITINFO2, field 080.
    pub info_2: u64,
}

impl Exit {
    /// Reads it from `vmcb`.
    #[inline]
    #[must_use]
    pub fn of<V: Vmcb + ?Sized>(vmcb: &V) -> Self {
        Self {
            code: vmcb.read(Field::ExitCode),
            info_1: vmcb.read(Field::ExitInfo1),
            info_2: vmcb.read(Field::ExitInfo2),
        }
    }
}

/// ICR bits 10:8.
const FIXED: u8 = 0;
/// ICR bit 12, delivery status: hardware may leave it set although the write is over.
const BUSY: u32 = 1 << 12;

impl Vcpu<'_> {
    /// Takes over what the processor keeps outside the page, and handles `exit` if it is about the
    /// APIC. Call it after every #VMEXIT, before anything else touches the APIC. `now` is the
    /// guest's TSC.
    ///
    /// Exit 401 and most of 402 are trap-like: the access is done, so what follows is what follows
    /// any write, [`LocalApic::after_write`](vlapic_core::LocalApic::after_write), and nothing of
    /// it can fault. The other 402 come back as [`ExitOutcome::Decode`] in xAPIC mode, as
    /// [`ExitOutcome::Msr`] in x2APIC mode.
    #[inline(always)]
    pub fn after_exit<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        exit: Exit,
        now: u64,
    ) -> ExitOutcome {
        self.disarm_flush(vmcb);
        self.take_v_tpr(vmcb);
        match exit.code {
            IncompleteIpi::EXIT_CODE => self.after_incomplete_ipi(exit.info_1, exit.info_2, now),
            NoAcceleration::EXIT_CODE => self.after_no_acceleration(exit.info_1, exit.info_2, now),
            _ => ExitOutcome::NotOurs,
        }
    }

    /// TPR follows V_TPR, which is what the guest's MOV to CR8 changes. With AVIC the processor has
    /// stored both; without, this is where the page learns of it. TPR bits 3:0 are in the page
    /// alone, and stay if the rest does.
    #[inline(always)]
    fn take_v_tpr<V: Vmcb + ?Sized>(&self, vmcb: &V) {
        let v_tpr = vmcb.interrupt_control().v_tpr();
        if self.slot().page().read(Register::Tpr) as u8 >> 4 != v_tpr {
            self.store_tpr_class(v_tpr);
        }
    }

    #[inline(never)]
    fn store_tpr_class(&self, class: u8) {
        self.slot().page().write(Register::Tpr, u32::from(class) << 4);
        self.store_ppr();
    }

    #[inline(never)]
    fn after_incomplete_ipi(&mut self, info_1: u64, info_2: u64, now: u64) -> ExitOutcome {
        if info_2 >> 32 != IncompleteIpi::TARGET_NOT_RUNNING {
            return self.after_ipi_not_sent(IncompleteIpi::decode(info_1, info_2), now);
        }
        self.clear_busy();
        let sent = Icr::from_bits(info_1).fixed_edge(self.slot().mode());
        if sent.is_to_self() {
            // The sender is here, and its next entry looks at IRR.
            return ExitOutcome::Done(Effect::None);
        }
        ExitOutcome::Done(Effect::Announce(sent))
    }

    #[inline(never)]
    fn after_ipi_not_sent(&mut self, exit: IncompleteIpi, now: u64) -> ExitOutcome {
        // Not by way of ICR: it may have been SELF IPI, and ICR holds an older command. Only where the
        // vector counts: hardware may look at it before it looks at the delivery mode.
        if exit.cause == IncompleteCause::InvalidVector && exit.icr.delivery_mode() == FIXED {
            self.clear_busy();
            let _ = self.slot().record_error(Errors::SEND_ILLEGAL_VECTOR);
            return ExitOutcome::Done(Effect::None);
        }
        // Nothing was sent, so all of it is emulated, from the value that stands in the page.
        ExitOutcome::Done(self.apic.after_write(Register::IcrLow, now))
    }

    #[inline(always)]
    fn clear_busy(&self) {
        let page = self.slot().page();
        let low = page.read(Register::IcrLow);
        if low & BUSY != 0 {
            page.write(Register::IcrLow, low & !BUSY);
        }
    }

    #[inline(never)]
    fn after_no_acceleration(&mut self, info_1: u64, info_2: u64, now: u64) -> ExitOutcome {
        let access = NoAcceleration::decode(info_1, info_2);
        let extended_lvt = self.features.contains(Feature::ExtendedLvt);
        let Some(register) = access.register() else { return self.undone(access) };
        // In xAPIC mode there is no SELF IPI: its slot is one that the table does not name.
        let unnamed = register == Register::SelfIpi && self.slot().mode() != Mode::X2Apic;
        if !access.write || unnamed {
            return self.undone(access);
        }
        if register == Register::Eoi {
            return ExitOutcome::Done(self.end_level_triggered(access.ended));
        }
        if register == Register::RemoteRead {
            // It is read-only; the processor has stored to it all the same.
            self.slot().page().write(register, 0);
        }
        match Handling::of_write(register, extended_lvt) {
            Handling::Trap | Handling::Accelerated => {
                ExitOutcome::Done(self.apic.after_write(register, now))
            }
            Handling::Fault | Handling::Allowed => self.undone(access),
        }
    }

    /// An EOI of a level-triggered vector. Whether the processor has taken it out of ISR the manual
    /// leaves open: its bit is cleared if it is set, and no other.
    #[inline(never)]
    fn end_level_triggered(&mut self, ended: Option<Vector>) -> Effect {
        let page = self.slot().page();
        page.write(Register::Eoi, 0);
        let highest = || page.isr().highest().filter(|&vector| page.tmr().contains(vector));
        let Some(vector) = ended.or_else(highest) else { return Effect::None };
        if page.isr().contains(vector) {
            page.isr().remove_owned(vector);
        }
        self.store_ppr();
        self.apic.after_virtual_eoi(vector)
    }

    /// An access that the processor has not done.
    #[inline(never)]
    fn undone(&self, access: NoAcceleration) -> ExitOutcome {
        if self.slot().mode() == Mode::X2Apic {
            let msr = 0x800 + u32::from(access.offset >> 4);
            return ExitOutcome::Msr { msr, write: access.write };
        }
        let kind = if access.write { AccessKind::Write } else { AccessKind::Read };
        ExitOutcome::Decode(WindowAccess { offset: access.offset, kind })
    }
}
