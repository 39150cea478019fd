//! TPR virtualization and PPR virtualization.

use super::super::exit::{ExitReason, VmExit};
use super::super::guest::Guest;
use super::super::page::offset;

impl Guest<'_> {
    /// TPR virtualization, after MOV to CR8, a write to page offset 080, or WRMSR 808.
    pub(in crate::model) fn tpr_virtualization(&mut self) -> Option<VmExit> {
        if !self.controls.virtual_interrupt_delivery {
            let exits = self.tpr_is_below_threshold();
            return exits.then(|| VmExit::trap(ExitReason::TprBelowThreshold, 0));
        }
        self.ppr_virtualization();
        self.evaluate();
        None
    }

    /// PPR virtualization: VPPR becomes the higher of VTPR and the class in service; ties keep VTPR's low bits.
    pub(in crate::model) fn ppr_virtualization(&mut self) {
        let vtpr = self.page.vtpr();
        let vppr = if vtpr >> 4 >= self.svi >> 4 { vtpr } else { self.svi & 0xf0 };
        self.page.store(offset::VPPR, vppr.into());
    }

    /// Whether VTPR's class is below the TPR threshold.
    pub(in crate::model) fn tpr_is_below_threshold(&self) -> bool {
        u32::from(self.page.vtpr() >> 4) < self.controls.tpr_threshold & 0xf
    }
}
