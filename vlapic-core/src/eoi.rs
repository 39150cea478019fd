//! End of interrupt.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::effect::Effect;
use crate::inbox::Inbox;
use crate::latches::Pin;
use crate::local::{LocalApic, PINS};
use crate::lvt::Lvt;
use crate::priority::settled_priority;
use crate::register::{LvtEntry, Register};
use crate::slot::Slot;
use crate::vector::Vector;

impl<I: Inbox> LocalApic<'_, I> {
    /// An EOI: the highest vector leaves ISR and PPR follows. A level-triggered one is broadcast,
    /// unless SVR bit 12 suppresses it. Without a vector in service nothing happens (SDM Vol. 3A
    /// 10.8.5).
    #[inline]
    pub fn end_of_interrupt(&mut self) -> Effect {
        let slot = self.slot;
        let page = slot.page();
        let Some(vector) = page.isr().take_highest_owned() else {
            return Effect::None;
        };
        let priority = settled_priority(page.read(Register::Tpr) as u8, page.isr());
        page.write(Register::Ppr, u32::from(priority));
        slot.after_virtual_eoi(vector)
    }

    /// The end of `vector`, whatever else is in service.
    pub(crate) fn end_of(&mut self, vector: Vector) -> Effect {
        self.slot.page().isr().remove_owned(vector);
        self.update_ppr();
        self.slot.after_virtual_eoi(vector)
    }

    /// What is left of an EOI when hardware has already taken `vector` out of ISR (exit 45).
    #[inline]
    pub fn after_virtual_eoi(&mut self, vector: Vector) -> Effect {
        self.slot.after_virtual_eoi(vector)
    }
}

impl<I: Inbox> Slot<'_, I> {
    #[inline]
    fn after_virtual_eoi(&self, vector: Vector) -> Effect {
        if self.latches.any_remote_irr() {
            return self.release_pins_and_broadcast(vector);
        }
        self.broadcast(vector)
    }

    /// The pins that waited for this EOI may interrupt again. TMR is not asked: an edge of the same
    /// vector, accepted since, has cleared its bit.
    #[cold]
    #[inline(never)]
    fn release_pins_and_broadcast(&self, vector: Vector) -> Effect {
        for (pin, entry) in PINS {
            if self.latches.remote_irr(pin) && self.lvt(entry).vector() == vector.get() {
                self.clear_remote_irr(pin, entry);
            }
        }
        self.broadcast(vector)
    }

    #[inline]
    fn broadcast(&self, vector: Vector) -> Effect {
        let page = self.page();
        let level = page.tmr().contains(vector);
        let suppressed =
            || self.profile().eoi_suppression() && page.svr().eoi_broadcast_suppressed();
        if level && !suppressed() { Effect::EndOfInterrupt(vector) } else { Effect::None }
    }

    /// The latch is what counts; the page's bit is for reads that do not exit, and a guest's
    /// store to the entry overwrites it.
    fn clear_remote_irr(&self, pin: Pin, entry: LvtEntry) {
        self.latches.set_remote_irr(pin, false);
        self.lvt_word(entry).fetch_and(!Lvt::REMOTE_IRR, Ordering::Relaxed);
    }

    pub(crate) fn lvt_word(&self, entry: LvtEntry) -> &AtomicU32 {
        self.page().word(Register::Lvt(entry).offset())
    }
}
