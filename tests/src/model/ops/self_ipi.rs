//! Self-IPI virtualization.

use super::super::guest::Guest;
use super::super::page::offset;

impl Guest<'_> {
    /// Self-IPI virtualization, after a qualifying write to the ICR or to MSR 83F.
    pub(in crate::model) fn self_ipi_virtualization(&mut self, vector: u8) {
        self.page.set_vector(offset::VIRR, vector);
        self.rvi = self.rvi.max(vector);
        self.evaluate();
    }
}
