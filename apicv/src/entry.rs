//! What is done before every VM entry.

use core::sync::atomic::AtomicU8;

use vlapic_core::{Prepared, Register, Vector};
use vlapic_hal::{Vmcs, VmcsError};

use crate::control::PrimaryControls;
use crate::eoi_exit;
use crate::field::{
    ENTRY_INTERRUPTION_INFORMATION, GUEST_INTERRUPT_STATUS, PRIMARY_CONTROLS, TPR_THRESHOLD,
};
use crate::negotiate::Feature;
use crate::vcpu::{SvrWrites, Vcpu};

/// What the hypervisor says of the entry it prepares.
#[derive(Clone, Copy, Debug)]
pub struct EntryInput<'g> {
    /// The guest's TSC.
    pub now: u64,
    /// The physical APIC ID of this CPU.
    pub cpu: u32,
    /// The guest can take an external interrupt at this entry: RFLAGS.IF is set, no blocking by
    /// STI or MOV SS, and no other event is to be injected. Only asked without virtual-interrupt
    /// delivery; with it the processor looks for itself.
    pub interruptible: bool,
    /// The guest's pending byte, if it uses upcalls.
    pub pending: Option<&'g AtomicU8>,
}

/// What the hypervisor has to do for this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Entry {
    /// Make the vCPU exit by this time, in guest TSC ticks (VMX-preemption timer or a timer of
    /// the host): the APIC timer expires, or an owed upcall wants a look at SVR.
    pub exit_by: Option<u64>,
    /// An upcall is owed: have the guest's next SVR write exit.
    pub intercept_svr: bool,
    /// INIT, SIPI, NMI, SMI or ExtINT came in meanwhile: take it by
    /// [`LocalApic::take_event`](vlapic_core::LocalApic::take_event) and call `before_entry`
    /// again.
    pub event: bool,
    /// This vector is injected as an external interrupt by this entry; its IRR bit has moved to
    /// ISR. If the entry exits with it in the IDT-vectoring information, inject it again.
    pub injected: Option<Vector>,
}

/// VM-entry interruption information: valid, external interrupt (SDM Vol. 3C Table 24-13).
const INJECT_EXTERNAL: u64 = 1 << 31;

impl Vcpu<'_> {
    /// Makes APIC and VMCS ready for an entry. Call it last, with interrupts of this CPU off from
    /// here to the entry: a notification that comes in between stays pending and is processed in
    /// guest mode.
    ///
    /// In this order: NV, NDST and SN as for running; time, pins, an owed upcall, and everything
    /// posted into IRR; the EOI-exit bitmap; then RVI and SVI from IRR and ISR, or, without
    /// virtual-interrupt delivery, injection, interrupt window and TPR threshold. Both are taken
    /// from the page as it stands each time, so nothing of an earlier life (INIT, import) is left
    /// in the VMCS.
    ///
    /// # Errors
    /// A VMREAD or VMWRITE that fails: do not enter. The call may be repeated.
    #[inline]
    pub fn before_entry(
        &mut self,
        vmcs: &mut impl Vmcs,
        input: EntryInput<'_>,
    ) -> Result<Entry, VmcsError> {
        let slot = self.apic().slot();
        let posting = slot.inbox();
        let features = self.features();
        posting.run(input.cpu, features.contains(Feature::PostedInterrupts), slot.page());
        let prepared = self.apic_mut().prepare(input.now, input.pending);
        let injected = if features.contains(Feature::VirtualInterruptDelivery) {
            eoi_exit::load(vmcs, posting, slot.page())?;
            self.load_interrupt_status(vmcs)?;
            None
        } else {
            self.deliver_by_injection(vmcs, input.interruptible)?
        };
        Ok(self.entry(prepared, injected, input.now))
    }

    /// RVI := highest in IRR, SVI := highest in ISR (SDM Vol. 3C 24.4.2). PIR may have been empty
    /// although ON was set, so IRR is scanned in any case.
    #[inline]
    fn load_interrupt_status(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let page = self.apic().slot().page();
        let number = |vector: Option<Vector>| vector.map_or(0, |vector| u64::from(vector.get()));
        let status = number(page.isr().highest()) << 8 | number(page.irr().highest());
        if vmcs.read(GUEST_INTERRUPT_STATUS)? != status {
            vmcs.write(GUEST_INTERRUPT_STATUS, status)?;
        }
        Ok(())
    }

    fn deliver_by_injection(
        &mut self,
        vmcs: &mut impl Vmcs,
        interruptible: bool,
    ) -> Result<Option<Vector>, VmcsError> {
        let mut injected = None;
        if interruptible && let Some(vector) = self.apic().nominate() {
            vmcs.write(ENTRY_INTERRUPTION_INFORMATION, INJECT_EXTERNAL | u64::from(vector.get()))?;
            self.apic_mut().commit(vector);
            injected = Some(vector);
        }
        self.set_interrupt_window(vmcs, self.apic().nominate().is_some())?;
        if self.features().contains(Feature::TprShadow) {
            let threshold = u64::from(self.tpr_threshold());
            if vmcs.read(TPR_THRESHOLD)? != threshold {
                vmcs.write(TPR_THRESHOLD, threshold)?;
            }
        }
        Ok(injected)
    }

    /// An exit as soon as the guest could take what waits.
    fn set_interrupt_window(&self, vmcs: &mut impl Vmcs, wanted: bool) -> Result<(), VmcsError> {
        let controls = PrimaryControls::from_bits(vmcs.read(PRIMARY_CONTROLS)? as u32);
        let wanted = wanted || self.external_interrupt_window();
        let new = controls.set(PrimaryControls::INTERRUPT_WINDOW_EXITING, wanted);
        if new != controls {
            vmcs.write(PRIMARY_CONTROLS, u64::from(new.bits()))?;
        }
        Ok(())
    }

    /// The class of the interrupt that TPR alone holds back, so that lowering TPR far enough
    /// exits; else zero. It never exceeds TPR's class, as VM entry demands (SDM Vol. 3C 26.2.1.1).
    fn tpr_threshold(&self) -> u8 {
        let tpr = self.apic().slot().page().read(Register::Tpr) as u8;
        match self.apic().highest_request() {
            Some(vector) if vector.class() <= tpr & 0xF0 => vector.class() >> 4,
            _ => 0,
        }
    }

    fn entry(&self, prepared: Prepared, injected: Option<Vector>, now: u64) -> Entry {
        let recheck = match self.svr_writes() {
            SvrWrites::Silent { recheck } if prepared.upcall_owed => {
                Some(now.saturating_add(recheck))
            }
            _ => None,
        };
        let exit_by = match (prepared.deadline, recheck) {
            (Some(timer), Some(recheck)) => Some(timer.min(recheck)),
            (timer, recheck) => timer.or(recheck),
        };
        let intercept_svr = prepared.upcall_owed && self.svr_writes() == SvrWrites::Interceptable;
        Entry { exit_by, intercept_svr, event: prepared.event, injected }
    }
}
