//! What is done before every VMRUN.

use core::convert::Infallible;

use vlapic_core::{Entry, EntryInput, Next, Prepared, Register, SvrWrites, Vector};

use crate::face::Face;
use crate::vcpu::Vcpu;
use crate::vmcb::{Field, Fields, InterruptControl, Vmcb};

/// EVENTINJ: valid; type 0 in bits 10:8 is an external interrupt (APM Vol. 2 15.20).
const VALID: u64 = 1 << 31;
/// 00C bit 4, in the upper half of word 008.
const INTERCEPT_V_INTR: u64 = 1 << 36;
/// 000: writes of CR8.
const INTERCEPT_CR8_WRITE: u64 = 1 << 24;

impl Vcpu<'_> {
    /// Makes APIC and VMCB ready for a VMRUN. Call it last, with interrupts of this CPU off from
    /// here to the VMRUN.
    ///
    /// In this order: the logical table, if this or another vCPU's addressing has changed; AVIC on,
    /// off or to its other face, as APIC mode and inhibits have it; where the vCPU is, for posters,
    /// other vCPUs and IOMMU; time, pins and an owed upcall; then, without AVIC, injection or an
    /// interrupt window; last V_TPR and PPR from the page. What follows from words that others may
    /// change is compared with them each time, so nothing of an earlier life (INIT, import) is left in
    /// the VMCB; if all of them are as they were, that is all there is to do.
    ///
    /// VMRUN itself evaluates IRR, so what was posted before it needs nothing more.
    ///
    /// Calling it and then not entering is harmless, as is calling it again.
    ///
    /// # Errors
    /// None: a VMCB is memory.
    #[inline(always)]
    pub fn before_entry<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        input: EntryInput,
    ) -> Result<Entry, Infallible> {
        let settled = self.settled_face(vmcb);
        if let Some(face) = settled {
            if !self.slot().inbox().is_assigned_to(input.cpu) {
                self.assign(vmcb, input.cpu, face);
            }
            // PPR is right: who changes TPR or ISR changes it as well, a processor with AVIC and every
            // function here. A guest that stores to its page unseen does not.
            if self.svr_writes == SvrWrites::Exit
                && self.has_v_tpr(vmcb)
                && let Some(prepared) = self.apic.prepare_if_quiet(input.now)
            {
                return Ok(Entry::new(prepared, Next::Enter, None, SvrWrites::Exit, input.now));
            }
        }
        Ok(self.make_ready(vmcb, input, settled.is_some()))
    }

    #[inline(never)]
    fn make_ready<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        input: EntryInput,
        settled: bool,
    ) -> Entry {
        if !settled && let Some(next) = self.settle(vmcb, input.cpu) {
            return Entry::not_yet(next);
        }
        let prepared = self.apic.prepare(input.now);
        let emulated = !settled && Face::of(vmcb) == Face::Emulated;
        let (next, injected) = if prepared.event || emulated {
            self.inject(vmcb, prepared, input)
        } else {
            (prepared.next(false), None)
        };
        self.store_ppr();
        self.load_v_tpr(vmcb);
        Entry::new(prepared, next, injected, self.svr_writes, input.now)
    }

    /// Whether an event is to be taken before the entry, and without AVIC what the entry injects.
    #[inline(never)]
    fn inject<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        prepared: Prepared,
        input: EntryInput,
    ) -> (Next, Option<Vector>) {
        // What is in the VMCB to be injected counts even if the hypervisor has not said so: it may be an
        // interrupt of ours whose entry was not made.
        let injecting =
            input.injecting || prepared.event && vmcb.read(Field::EventInjection) & VALID != 0;
        let next = prepared.next(injecting);
        if Face::of(vmcb) != Face::Emulated {
            return (next, None);
        }
        let may = next == Next::Enter && input.interruptible && !input.injecting;
        (next, self.deliver_by_injection(vmcb, may))
    }

    /// Injects the nominated vector if the guest can take it. What still waits gets an exit when it
    /// could be taken: a window, or, if only TPR holds it back, the next write of CR8.
    fn deliver_by_injection<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        interruptible: bool,
    ) -> Option<Vector> {
        let mut injected = None;
        let mut waits = false;
        let mut held_back = false;
        if self.apic.highest_request().is_some() {
            let free = vmcb.read(Field::EventInjection) & VALID == 0;
            let nominated = self.apic.nominate().filter(|_| interruptible && free);
            injected = nominated.filter(|&vector| self.apic.commit(vector));
            if let Some(vector) = injected {
                vmcb.write(Field::EventInjection, VALID | u64::from(vector.get()));
            }
            waits = self.apic.nominate().is_some();
            held_back = !waits && self.held_back_by_tpr();
        }
        self.set_window(vmcb, waits || self.external_interrupt_window);
        self.intercept_cr8_writes(vmcb, held_back);
        injected
    }

    /// Whether the highest request waits for nothing but a lower TPR.
    fn held_back_by_tpr(&self) -> bool {
        let in_service = self.slot().page().isr().highest().map_or(0, Vector::class);
        let requested = self.apic.highest_request().map_or(0, Vector::class);
        self.slot().delivers() && requested > in_service
    }

    /// An exit (64) as soon as the guest could take an interrupt.
    pub(crate) fn set_window<V: Vmcb + ?Sized>(&self, vmcb: &mut V, wanted: bool) {
        let control = vmcb
            .interrupt_control()
            .set(InterruptControl::V_INTR_PRIO, false)
            .set(InterruptControl::V_IRQ | InterruptControl::V_IGN_TPR, wanted);
        vmcb.write(Field::InterruptControl, control.bits());
        set_bit(vmcb, Field::Intercepts, INTERCEPT_V_INTR, wanted);
    }

    pub(crate) fn intercept_cr8_writes<V: Vmcb + ?Sized>(&self, vmcb: &mut V, wanted: bool) {
        set_bit(vmcb, Field::CrIntercepts, INTERCEPT_CR8_WRITE, wanted);
    }

    /// PPR as TPR and ISR have it. The processor maintains it while the guest runs; whoever has
    /// changed the two meanwhile did so behind its back.
    #[inline(always)]
    pub(crate) fn store_ppr(&self) {
        let page = self.slot().page();
        let isr = page.isr();
        let in_service = (0..8).fold(0, |all, index| all | isr.bank(index));
        // With nothing in service it is TPR.
        let priority = match in_service {
            0 => page.read(Register::Tpr) & 0xFF,
            _ => u32::from(self.priority_in_service()),
        };
        if page.read(Register::Ppr) != priority {
            page.write(Register::Ppr, priority);
        }
    }

    #[inline(never)]
    fn priority_in_service(&self) -> u8 {
        self.slot().processor_priority()
    }

    /// V_TPR follows the page before each entry: VMRUN takes it from the VMCB, and that it also
    /// looks at the page is not said.
    #[inline(always)]
    fn load_v_tpr<V: Vmcb + ?Sized>(&self, vmcb: &mut V) {
        if !self.has_v_tpr(vmcb) {
            let tpr = self.slot().page().read(Register::Tpr) as u8;
            let control = vmcb.interrupt_control().with_v_tpr(tpr >> 4);
            vmcb.write(Field::InterruptControl, control.bits());
        }
    }

    #[inline(always)]
    fn has_v_tpr<V: Vmcb + ?Sized>(&self, vmcb: &V) -> bool {
        // Bits 7:4 beside it are zero.
        vmcb.interrupt_control().bits() as u8 == self.slot().page().read(Register::Tpr) as u8 >> 4
    }
}

fn set_bit<V: Vmcb + ?Sized>(vmcb: &mut V, field: Field, bit: u64, wanted: bool) {
    let word = vmcb.read(field);
    vmcb.write(field, if wanted { word | bit } else { word & !bit });
}
