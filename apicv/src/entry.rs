//! What is done before every VM entry.

use vlapic_core::{Entry, EntryInput, Next, Prepared, Register, Vector};
use vlapic_hal::{Vmcs, VmcsError};

use crate::control::PrimaryControls;
use crate::field::{ENTRY_INTERRUPTION_INFORMATION, PRIMARY_CONTROLS, TPR_THRESHOLD};
use crate::interrupt_status;
use crate::negotiate::Feature;
use crate::place::Place;
use crate::vcpu::Vcpu;

/// VM-entry interruption information, bit 31: valid. The type in bits 10:8 is 0 for external
/// interrupts (SDM Vol. 3C Table 24-13).
const VALID: u64 = 1 << 31;

impl Vcpu<'_> {
    /// Makes APIC and VMCS ready for an entry. Call it last, with interrupts of this CPU off from
    /// here to the entry: a notification that comes in between stays pending and is processed in
    /// guest mode.
    ///
    /// In this order: the controls and the MSR bitmap, if the APIC's mode has become another, by
    /// whatever way (WRMSR, RESET, import); NV, NDST and SN as for running; time, pins, an owed upcall, and everything
    /// posted into IRR; then the EOI-exit bitmap, RVI and SVI from TMR, IRR and ISR, or, without
    /// virtual-interrupt delivery, injection, interrupt window and TPR threshold. Both are taken
    /// from the page as it stands each time, so nothing of an earlier life (INIT, import) is left
    /// in the VMCS.
    ///
    /// Calling it and then not entering is harmless, as is calling it again.
    ///
    /// # Errors
    /// A VMREAD or VMWRITE that fails: do not enter. The call may be repeated, nothing is lost: a
    /// vector leaves IRR only once everything else has succeeded.
    #[inline]
    pub fn before_entry(
        &mut self,
        vmcs: &mut impl Vmcs,
        input: EntryInput,
    ) -> Result<Entry, VmcsError> {
        let slot = self.apic().slot();
        if slot.base().mode_bits() != self.programmed_for {
            self.follow_mode(vmcs)?;
        }
        let features = self.active;
        if !self.place.is(input.cpu, slot.inbox().descriptor().control()) {
            self.arrive(input.cpu);
        }
        let prepared = self.apic_mut().prepare(input.now);
        let next = self.next(vmcs, prepared, input.injecting)?;
        let injected = if features.contains(Feature::VirtualInterruptDelivery) {
            interrupt_status::load(vmcs, slot)?;
            None
        } else {
            let threshold = features.contains(Feature::TprShadow);
            let may = next == Next::Enter && input.interruptible && !input.injecting;
            self.deliver_by_injection(vmcs, may, threshold)?
        };
        let flush = self.cached.needs_flush();
        let entry = Entry::new(prepared, next, injected, self.svr_writes(), input.now);
        Ok(Entry { flush, ..entry })
    }

    /// The vCPU is to run on another CPU than before, or the descriptor does not say so: NV, NDST and SN
    /// as for running.
    #[inline(never)]
    fn arrive(&mut self, cpu: u32) {
        let slot = self.apic().slot();
        let hardware = self.active.contains(Feature::PostedInterrupts);
        let control = slot.inbox().run(cpu, hardware, slot.page());
        if !self.place.is_on(cpu) {
            self.cached.moved();
        }
        self.place = Place::new(cpu, control);
    }

    /// What is in the VMCS to be injected counts even if the hypervisor has not said so: it may be an
    /// interrupt of ours whose entry was not made.
    #[inline]
    fn next(
        &self,
        vmcs: &impl Vmcs,
        prepared: Prepared,
        injecting: bool,
    ) -> Result<Next, VmcsError> {
        let injecting =
            injecting || prepared.event && vmcs.read(ENTRY_INTERRUPTION_INFORMATION)? & VALID != 0;
        Ok(prepared.next(injecting))
    }

    /// Injects the nominated vector if the guest can take it, else asks for an exit when it can.
    ///
    /// Once it is in service nothing else in IRR is deliverable before its EOI, which exits. The
    /// write that injects comes last, and IRR changes after it.
    fn deliver_by_injection(
        &mut self,
        vmcs: &mut impl Vmcs,
        interruptible: bool,
        has_threshold: bool,
    ) -> Result<Option<Vector>, VmcsError> {
        let nominated = self.apic().nominate();
        let injects = nominated.is_some()
            && interruptible
            && vmcs.read(ENTRY_INTERRUPTION_INFORMATION)? & VALID == 0;
        let injected = nominated.filter(|_| injects);
        self.set_interrupt_window(vmcs, nominated.is_some() && injected.is_none())?;
        if has_threshold {
            let threshold = if nominated.is_some() { 0 } else { self.tpr_threshold() };
            if vmcs.read(TPR_THRESHOLD)? != u64::from(threshold) {
                vmcs.write(TPR_THRESHOLD, u64::from(threshold))?;
            }
        }
        if let Some(vector) = injected {
            vmcs.write(ENTRY_INTERRUPTION_INFORMATION, VALID | u64::from(vector.get()))?;
            self.apic_mut().commit(vector);
        }
        Ok(injected)
    }

    /// An exit as soon as the guest could take what waits.
    pub(crate) fn set_interrupt_window(
        &self,
        vmcs: &mut impl Vmcs,
        wanted: bool,
    ) -> Result<(), VmcsError> {
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
        let page = self.apic().slot().page();
        let tpr = page.read(Register::Tpr) as u8 & 0xF0;
        let in_service = page.isr().highest().map_or(0, Vector::class);
        match self.apic().highest_request() {
            Some(vector) if vector.class() <= tpr && vector.class() > in_service => {
                vector.class() >> 4
            }
            _ => 0,
        }
    }
}
