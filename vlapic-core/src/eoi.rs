//! End of interrupt.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::effect::Effect;
use crate::inbox::Inbox;
use crate::latches::Pin;
use crate::local::{LocalApic, PINS};
use crate::lvt::Lvt;
use crate::priority::processor_priority;
use crate::register::{LvtEntry, Register};
use crate::slot::Slot;
use crate::vector::Vector;

impl<I: Inbox> LocalApic<'_, I> {
    /// An EOI: the highest vector leaves ISR and PPR follows. A level-triggered one is broadcast,
    /// unless SVR bit 12 suppresses it. Without a vector in service nothing happens (SDM Vol. 3A
    /// 10.8.5).
    #[inline(always)]
    pub fn end_of_interrupt(&mut self) -> Effect {
        broadcast(self.slot.end_highest())
    }

    /// The end of `vector`, whatever else is in service.
    pub(crate) fn end_of(&mut self, vector: Vector) -> Effect {
        self.slot.page().isr().remove_owned(vector);
        self.update_ppr();
        self.after_virtual_eoi(vector)
    }

    /// What is left of an EOI when hardware has already taken `vector` out of ISR (exit 45).
    #[inline]
    pub fn after_virtual_eoi(&mut self, vector: Vector) -> Effect {
        broadcast(self.slot.after_eoi_of(vector))
    }
}

#[inline(always)]
const fn broadcast(vector: Option<Vector>) -> Effect {
    match vector {
        Some(vector) => Effect::EndOfInterrupt(vector),
        None => Effect::None,
    }
}

/// What is to be broadcast is said by a vector, which fits a register; an effect would go through memory.
impl<I: Inbox> Slot<'_, I> {
    #[inline]
    fn end_highest(&self) -> Option<Vector> {
        let page = self.page();
        let isr = page.isr();
        let vector = isr.take_highest_owned()?;
        let tpr = page.read(Register::Tpr) as u8;
        let settled = isr.is_empty_up_to(vector);
        let priority = if settled { tpr } else { processor_priority(tpr, isr) };
        page.write(Register::Ppr, u32::from(priority));
        self.after_eoi_of(vector)
    }

    #[inline]
    fn after_eoi_of(&self, vector: Vector) -> Option<Vector> {
        if self.latches.any_remote_irr() {
            return self.release_pins(vector);
        }
        self.to_be_broadcast(vector)
    }

    /// The pins that waited for this EOI may interrupt again. TMR is not asked: an edge of the same
    /// vector, accepted since, has cleared its bit.
    #[cold]
    #[inline(never)]
    fn release_pins(&self, vector: Vector) -> Option<Vector> {
        for (pin, entry) in PINS {
            if self.latches.remote_irr(pin) && self.lvt(entry).vector() == vector.get() {
                self.clear_remote_irr(pin, entry);
            }
        }
        self.to_be_broadcast(vector)
    }

    #[inline]
    fn to_be_broadcast(&self, vector: Vector) -> Option<Vector> {
        let page = self.page();
        let level = page.tmr().contains(vector);
        let suppressed =
            || self.profile().eoi_suppression() && page.svr().eoi_broadcast_suppressed();
        (level && !suppressed()).then_some(vector)
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
