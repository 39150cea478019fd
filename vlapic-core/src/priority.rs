//! Processor and arbitration priority: one definition each, over the page.

use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::register::Register;
use crate::slot::Slot;
use crate::vector::Vector;
use crate::vectors::VectorSet;

/// PPR: TPR if its class is at least that of the highest vector in service, else that vector's class.
#[inline]
pub(crate) fn processor_priority(tpr: u8, isr: VectorSet<'_>) -> u8 {
    let in_service = isr.highest().map_or(0, Vector::class);
    if tpr & 0xF0 >= in_service { tpr } else { in_service }
}

impl<I: Inbox> LocalApic<'_, I> {
    /// PPR as [`Slot::processor_priority`] works it out.
    #[inline]
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        self.slot.processor_priority()
    }

    /// PPR takes the value that follows from TPR and ISR: PPR virtualization (SDM Vol. 3C 29.1.3).
    ///
    /// PPR's word in the page is the register, for a processor and here: a guest's read is a load. So
    /// whoever stores to TPR or ISR in the page calls this afterwards. The methods here have done so, and so
    /// has a processor that keeps PPR; where TPR may change without PPR,
    /// [`set_unseen_tpr`](Self::set_unseen_tpr) and [`set_unseen_writes`](Self::set_unseen_writes) say it.
    /// Delivery never asks PPR's word: [`nominate`](Self::nominate) asks TPR and ISR.
    #[inline]
    pub fn update_ppr(&self) {
        self.update_ppr_for(self.slot.page().read(Register::Tpr) as u8);
    }

    /// The same where TPR is known.
    #[inline]
    pub(crate) fn update_ppr_for(&self, tpr: u8) {
        let page = self.slot.page();
        page.write(Register::Ppr, u32::from(processor_priority(tpr, page.isr())));
    }
}

impl<I: Inbox> Slot<'_, I> {
    /// PPR as it follows from TPR and ISR: TPR if its class is at least that of the highest vector in
    /// service, else that vector's class (SDM Vol. 3A 10.8.3.1). Worked out anew, whatever PPR's word says.
    #[inline]
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        processor_priority(self.page().read(Register::Tpr) as u8, self.page().isr())
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
