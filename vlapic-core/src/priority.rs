//! Processor and arbitration priority: one definition each, over the page.

use crate::inbox::Inbox;
use crate::register::Register;
use crate::slot::Slot;
use crate::vector::Vector;

/// PPR from TPR and the class of the highest vector in service, 0 if there is none.
#[inline]
pub(crate) const fn processor_priority(tpr: u8, in_service: u8) -> u8 {
    if tpr & 0xF0 >= in_service { tpr } else { in_service }
}

impl<I: Inbox> Slot<'_, I> {
    /// PPR from TPR and ISR: TPR if its class is at least that of the highest vector in service,
    /// else that vector's class (SDM Vol. 3A 10.8.3.1).
    #[inline]
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let tpr = self.page().read(Register::Tpr) as u8;
        processor_priority(tpr, self.page().isr().highest().map_or(0, Vector::class))
    }

    /// APR: the class of TPR, ISR or IRR, whichever is highest, and TPR's sub-class if it is TPR's
    /// (APM Vol. 2 16.6.2).
    #[must_use]
    pub fn arbitration_priority(&self) -> u8 {
        let tpr = self.page().read(Register::Tpr) as u8;
        let requested = self.page().irr().highest().map_or(0, Vector::class);
        let class = (self.processor_priority() & 0xF0).max(requested);
        if tpr & 0xF0 == class { tpr } else { class }
    }
}
