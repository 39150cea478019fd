//! EOI virtualization.

use super::super::exit::{ExitReason, VmExit};
use super::super::guest::Guest;
use super::super::page::offset;

impl Guest<'_> {
    /// EOI virtualization, after a write to page offset 0B0 or WRMSR 80B with virtual-interrupt delivery.
    ///
    /// An exit here skips the evaluation: what is pending is looked at again at the next VM entry.
    pub(in crate::model) fn eoi_virtualization(&mut self) -> Option<VmExit> {
        let vector = self.svi;
        if vector == 0 && !self.knobs.spurious_eoi_is_vector_0 {
            self.ppr_virtualization();
            self.evaluate();
            return None;
        }
        self.page.clear_vector(offset::VISR, vector);
        self.svi = self.page.highest(offset::VISR).unwrap_or(0);
        self.ppr_virtualization();
        if self.controls.exits_at_eoi(vector) {
            return Some(VmExit::trap(ExitReason::VirtualizedEoi, vector.into()));
        }
        self.evaluate();
        None
    }
}
