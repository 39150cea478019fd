//! Whether a destination means an APIC (SDM Vol. 3A 10.6.2, 10.12.9; APM Vol. 2 16.6, 16.14).

use crate::base::{ApicBase, Mode};
use crate::inbox::Inbox;
use crate::lifecycle::x2apic_ldr;
use crate::message::Address;
use crate::register::Register;
use crate::slot::Slot;

impl<I: Inbox> Slot<'_, I> {
    /// Whether a physical destination is this APIC.
    ///
    /// In xAPIC mode the APIC compares 8 bits only, so a wide destination reaches it by its low
    /// byte. FF in the low byte of a wide destination is no broadcast: a start-up IPI to ID 1FF
    /// must not start every APIC that is still in xAPIC mode. An APIC that is not present hears
    /// nothing.
    #[inline]
    #[must_use]
    pub fn matches_physical(&self, address: Address) -> bool {
        if address.broadcast() { self.present() } else { self.has_id(address.id()) }
    }

    /// [`matches_physical`](Self::matches_physical) of an `id` that is no broadcast.
    #[inline]
    pub(crate) fn has_id(&self, id: u32) -> bool {
        self.has_id_with(self.base(), id)
    }

    /// [`has_id`](Self::has_id) as it would be with `base`.
    #[inline]
    pub(crate) fn has_id_with(&self, base: ApicBase, id: u32) -> bool {
        match base.mode() {
            Mode::Disabled => false,
            Mode::XApic => id & 0xFF == self.xapic_id(),
            Mode::X2Apic => id == self.x2apic_id(),
        }
    }

    /// Whether a logical destination means this APIC.
    ///
    /// xAPIC mode: flat or cluster model by DFR, from the page; other models match nothing. A
    /// wide destination above FF names an x2APIC cluster and no xAPIC-mode APIC. Narrow FF is a
    /// broadcast in both models, whatever LDR says (APM Vol. 2 16.6.1).
    #[inline]
    #[must_use]
    pub fn matches_logical(&self, address: Address) -> bool {
        if address.broadcast() { self.present() } else { self.has_logical_id(address.id()) }
    }

    /// [`matches_logical`](Self::matches_logical) of an `id` that is no broadcast.
    #[inline]
    pub(crate) fn has_logical_id(&self, id: u32) -> bool {
        self.has_logical_id_with(self.base(), id)
    }

    /// [`has_logical_id`](Self::has_logical_id) as it would be with `base`.
    #[inline]
    pub(crate) fn has_logical_id_with(&self, base: ApicBase, id: u32) -> bool {
        match base.mode() {
            Mode::Disabled => false,
            Mode::XApic => {
                let page = self.page();
                let ldr = page.read(Register::Ldr) >> 24;
                match page.read(Register::Dfr) >> 28 {
                    _ if id > 0xFF => false,
                    0xF => id & ldr != 0,
                    0x0 => id >> 4 == ldr >> 4 && id & ldr & 0xF != 0,
                    _ => false,
                }
            }
            Mode::X2Apic => {
                let ldr = x2apic_ldr(self.x2apic_id());
                id >> 16 == ldr >> 16 && id & ldr & 0xFFFF != 0
            }
        }
    }

    /// The ID that an xAPIC-mode APIC compares. Where the register is read-only this is the
    /// strapped ID whatever the guest has scribbled into the page.
    fn xapic_id(&self) -> u32 {
        if self.profile().xapic_id_writable() {
            self.page().read(Register::Id) >> 24
        } else {
            self.x2apic_id() & 0xFF
        }
    }
}
