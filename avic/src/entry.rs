//! What is done before every VMRUN.

use core::convert::Infallible;
use core::sync::atomic::{Ordering, fence};

use vlapic_core::{Entry, EntryInput, Next, Register, SvrWrites, Vector};

use crate::backing::Whereabouts;
use crate::face::Face;
use crate::negotiate::Feature;
use crate::routing::{Addressing, Survey};
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
    /// interrupt window; last V_TPR and PPR from the page. All is taken from the page as it stands
    /// each time, so nothing of an earlier life (INIT, import) is left in the VMCB.
    ///
    /// VMRUN itself evaluates IRR, so what was posted before it needs nothing more.
    ///
    /// Calling it and then not entering is harmless, as is calling it again.
    ///
    /// # Errors
    /// None: a VMCB is memory.
    #[inline]
    pub fn before_entry<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        input: EntryInput,
    ) -> Result<Entry, Infallible> {
        self.look_at_addressing();
        if self.peers_due {
            self.peers_due = false;
            return Ok(Entry::not_yet(Next::KickOthers));
        }
        let face = self.wanted_face();
        if !self.look_at_window(face) {
            return Ok(Entry::not_yet(Next::UnmapWindow));
        }
        self.turn(vmcb, face);
        self.assign(vmcb, input.cpu, face);
        let prepared = self.apic.prepare(input.now);
        // What is in the VMCB to be injected counts even if the hypervisor has not said so: it may be an
        // interrupt of ours whose entry was not made.
        let injecting =
            input.injecting || prepared.event && vmcb.read(Field::EventInjection) & VALID != 0;
        let next = prepared.next(injecting);
        let injected = if face == Face::Emulated {
            let may = next == Next::Enter && input.interruptible && !input.injecting;
            self.deliver_by_injection(vmcb, may)
        } else {
            None
        };
        self.store_ppr();
        self.load_v_tpr(vmcb);
        Ok(Entry::new(prepared, next, injected, self.svr_writes, input.now))
    }

    /// Keeps the logical table true to the pages: see [`LogicalTable`](crate::LogicalTable).
    ///
    /// By whatever way this vCPU's addressing has changed, exit, MSR write, INIT, import or a store
    /// that nobody was told of, this is where it is noticed, before the guest runs on.
    #[inline]
    pub(crate) fn look_at_addressing(&mut self) {
        let addressing = Addressing::of(self.slot());
        if addressing != self.addressing || self.seen != self.shared.changes() {
            self.addressing_changed(addressing);
        }
    }

    #[cold]
    fn addressing_changed(&mut self, addressing: Addressing) {
        let changed = addressing != self.addressing;
        self.addressing = addressing;
        self.set_valid();
        if changed {
            if let Some(id) = self.logical_target() {
                self.shared.logical().withdraw(id);
            }
            self.shared.changed();
        }
        self.seen = self.shared.changes();
        self.survey();
        if let Addressing::XApic { renamed, .. } = addressing {
            self.peers_due |= changed && (renamed || self.survey.x2apic);
        }
    }

    /// The entry in the physical table is valid while the APIC accepts interrupts: hardware does not
    /// ask SVR. Without it a directed IPI exits at its sender and is emulated, which asks, and a
    /// broadcast passes the vCPU by, as it should. Where the guest may enable its APIC unseen, a
    /// broadcast would be lost, so the entry is always valid there, as it is before the first look.
    pub(crate) fn set_valid(&self) {
        let accepts = self.addressing != Addressing::None;
        let unseen = self.svr_writes != SvrWrites::Exit;
        self.shared.physical().set_valid(self.slot().x2apic_id(), accepts || unseen);
    }

    /// Claim, fence, look at all pages, then publish or clear.
    fn survey(&mut self) {
        let logical = self.shared.logical();
        let place = self.addressing.place().zip(self.logical_target());
        let claimed = place.is_none_or(|(offset, id)| logical.claim(offset, id));
        // The page, stored to before, and the claim come before the look at other pages; pairs
        // with the same fence of whoever changes another page.
        fence(Ordering::SeqCst);
        self.survey = Survey::of(&self.shared.vm());
        if !self.survey.logical_ids_fit {
            logical.clear();
        } else if !claimed {
            // Somebody has moved away and not yet been here to say so: all begin anew.
            logical.clear();
            self.shared.changed();
        } else if let Some((offset, id)) = place {
            logical.publish(offset, id);
        }
    }

    /// The guest physical APIC ID as an entry of the logical table has it.
    fn logical_target(&self) -> Option<u8> {
        u8::try_from(self.slot().x2apic_id()).ok().filter(|&id| id != 0xFF)
    }

    /// Assigns the vCPU to this CPU: physical table first, then whereabouts, then routes. If that
    /// was a change a SeqCst fence stands between it and the look at IRR, by VMRUN or by injection.
    #[inline]
    fn assign<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V, cpu: u32, face: Face) {
        let reached = face != Face::Emulated && cpu <= self.trust.highest_host_id();
        let whereabouts = if reached && self.features.contains(Feature::Doorbell) {
            Whereabouts::Doorbell(cpu)
        } else {
            Whereabouts::Kick(cpu)
        };
        let before = self.slot().inbox().whereabouts();
        if face == Face::XAvic
            && before.cpu() != Some(cpu)
            && !self.resources.is_some_and(|resources| resources.private_asid)
        {
            self.arm_flush(vmcb);
        }
        let running = reached && self.features.contains(Feature::IsRunning);
        let id = self.slot().x2apic_id();
        let entry = self.shared.physical().entry(id);
        if before != whereabouts || entry.is_running() != running {
            self.reassign(whereabouts, cpu, running);
        }
    }

    #[cold]
    fn reassign(&self, whereabouts: Whereabouts, cpu: u32, running: bool) {
        if !running {
            self.depart(whereabouts);
            return;
        }
        if let Ok(cpu) = u16::try_from(cpu) {
            self.shared.physical().run(self.slot().x2apic_id(), cpu);
        }
        self.slot().inbox().move_to(whereabouts);
        fence(Ordering::SeqCst);
        self.shared.steer(self.index, whereabouts);
        // Pairs with the locked OR in `Backing::post`, and with the IOMMU's write of IRR before its
        // look at IsRun.
        fence(Ordering::SeqCst);
    }

    /// Takes IsRunning away: whereabouts first, then routes, then the physical table, then a SeqCst
    /// fence before the caller looks at IRR.
    pub(crate) fn depart(&self, whereabouts: Whereabouts) {
        self.slot().inbox().move_to(whereabouts);
        fence(Ordering::SeqCst);
        self.shared.steer(self.index, whereabouts);
        self.shared.physical().stop(self.slot().x2apic_id());
        // Pairs with the locked OR in `Backing::post`, and with the senders' write of IRR before their
        // look at IsRunning.
        fence(Ordering::SeqCst);
    }

    /// Injects the nominated vector if the guest can take it. What still waits gets an exit when it
    /// could be taken: a window, or, if only TPR holds it back, the next write of CR8.
    fn deliver_by_injection<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        interruptible: bool,
    ) -> Option<Vector> {
        let free = vmcb.read(Field::EventInjection) & VALID == 0;
        let nominated = self.apic.nominate().filter(|_| interruptible && free);
        let injected = nominated.filter(|&vector| self.apic.commit(vector));
        if let Some(vector) = injected {
            vmcb.write(Field::EventInjection, VALID | u64::from(vector.get()));
        }
        let waits = self.apic.nominate().is_some();
        self.set_window(vmcb, waits || self.external_interrupt_window);
        self.intercept_cr8_writes(vmcb, !waits && self.held_back_by_tpr());
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
    pub(crate) fn store_ppr(&self) {
        let slot = self.slot();
        let priority = u32::from(slot.processor_priority());
        if slot.page().read(Register::Ppr) != priority {
            slot.page().write(Register::Ppr, priority);
        }
    }

    /// V_TPR follows the page before each entry: VMRUN takes it from the VMCB, and that it also
    /// looks at the page is not said.
    fn load_v_tpr<V: Vmcb + ?Sized>(&self, vmcb: &mut V) {
        let control = vmcb.interrupt_control();
        let tpr = self.slot().page().read(Register::Tpr) as u8;
        vmcb.write(Field::InterruptControl, control.with_v_tpr(tpr >> 4).bits());
    }
}

fn set_bit<V: Vmcb + ?Sized>(vmcb: &mut V, field: Field, bit: u64, wanted: bool) {
    let word = vmcb.read(field);
    vmcb.write(field, if wanted { word | bit } else { word & !bit });
}
