//! What an entry finds settled by the last one, and how it is settled anew.

use core::sync::atomic::{Ordering, fence};

use vlapic_core::{Next, Register, SvrWrites};

use crate::face::Face;
use crate::routing::{Addressing, Survey};
use crate::vcpu::{DEFAULT_BASE, Vcpu};
use crate::vmcb::{Fields, Vmcb};

impl Vcpu<'_> {
    /// The face of AVIC that the vCPU has, if it is accelerated and nothing has changed on which [`settle`](Self::settle)
    /// depends: every word is looked at that somebody else may store to, and what this handle's own
    /// methods change they unsettle.
    ///
    /// Where the register window is must not be asked again: once a vCPU objects to its being mapped,
    /// nobody gets leave to map it.
    #[inline(always)]
    pub(crate) fn settled_face<V: Vmcb + ?Sized>(&self, vmcb: &V) -> Option<Face> {
        let slot = self.slot();
        let page = slot.page();
        // AVIC enable and x2AVIC enable, 31 and 30, where IA32_APIC_BASE has EN and EXTD, 11 and 10.
        let enabled = vmcb.interrupt_control().bits() >> 20 & MODE;
        let base = slot.base().bits() & !BSP;
        let settled = self.seen == self.shared.revision()
            && base == DEFAULT_BASE | enabled
            && enabled & EN != 0
            && slot.inbox().inhibits().is_empty()
            && page.svr().software_enabled()
            && Addressing::of_accepting(slot, enabled == MODE) == self.addressing
            && page.read(Register::ExtendedControl) & 1 == 0;
        settled.then_some(if enabled == MODE { Face::X2Avic } else { Face::XAvic })
    }

    /// Settles all that is programmed for the vCPU: what comes first, or `None`.
    ///
    /// The logical table, if this or another vCPU's addressing has changed; AVIC on, off or to its
    /// other face, as APIC mode and inhibits have it; where the vCPU is.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V, cpu: u32) -> Option<Next> {
        // Before any look: what comes later is not in this revision.
        let revision = self.shared.revision();
        self.seen = self.seen.unsettled();
        self.look_at_addressing();
        if self.peers_due {
            self.peers_due = false;
            return Some(Next::KickOthers);
        }
        let face = self.wanted_face();
        if !self.look_at_window(face) {
            return Some(Next::UnmapWindow);
        }
        self.turn(vmcb, face);
        self.assign(vmcb, cpu, face);
        if face != Face::Emulated {
            self.seen = self.seen.settled(revision);
        }
        None
    }

    /// Keeps the logical table true to the pages: see [`LogicalTable`](crate::LogicalTable).
    ///
    /// By whatever way this vCPU's addressing has changed, exit, MSR write, INIT, import or a store
    /// that nobody was told of, this is where it is noticed, before the guest runs on.
    pub(crate) fn look_at_addressing(&mut self) {
        let addressing = Addressing::of(self.slot());
        let changes = self.shared.revision().changes();
        if addressing != self.addressing || self.seen.changes() != changes {
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
        self.seen = self.shared.revision().unsettled();
        self.survey();
        if changed && addressing.is_xapic() {
            self.peers_due |= addressing.renamed() || self.survey.x2apic;
        }
    }

    /// The entry in the physical table is valid while the APIC accepts interrupts: hardware does not
    /// ask SVR. Without it a directed IPI exits at its sender and is emulated, which asks, and a
    /// broadcast passes the vCPU by, as it should. Where the guest may enable its APIC unseen, a
    /// broadcast would be lost, so the entry is always valid there, as it is before the first look.
    pub(crate) fn set_valid(&self) {
        let accepts = self.addressing != Addressing::NONE;
        let unseen = self.svr_writes != SvrWrites::Exit;
        self.entry.set_valid(accepts || unseen);
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
}

/// IA32_APIC_BASE.BSP.
const BSP: u64 = 1 << 8;
/// IA32_APIC_BASE.EN.
const EN: u64 = 1 << 11;
/// IA32_APIC_BASE.EN and EXTD.
const MODE: u64 = EN | 1 << 10;
