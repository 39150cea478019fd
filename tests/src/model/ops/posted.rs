//! Posted-interrupt processing.

use super::super::descriptor::Descriptor;
use super::super::guest::Guest;
use super::super::interleave::Point;
use super::super::page::offset;
use super::super::physical::PhysicalApic;

impl<'m> Guest<'m> {
    /// Posted-interrupt processing, after the physical APIC was acknowledged with the notification vector.
    pub(in crate::model) fn posted_interrupt_processing(&mut self, physical: &mut PhysicalApic) {
        self.others.reach(Point::BeforeOnIsCleared);
        self.descriptor().clear_outstanding_notification();
        self.others.reach(Point::AfterOnIsCleared);
        physical.end_of_interrupt();
        let mut highest_posted = 0;
        for group in 0..4 {
            let posted = self.descriptor().take_group(group);
            self.others.reach(Point::PirGroupTaken(group));
            self.page.merge_group(offset::VIRR, group.into(), posted);
            if let Some(bit) = posted.checked_ilog2() {
                highest_posted = group * 64 + bit as u8;
            }
        }
        if self.knobs.posting_rescans_virr {
            highest_posted = self.page.highest(offset::VIRR).unwrap_or(0);
        }
        self.rvi = self.rvi.max(highest_posted);
        self.others.reach(Point::BeforeEvaluation);
        self.evaluate();
    }

    fn descriptor(&self) -> Descriptor<'_, 'm> {
        Descriptor::new(&self.memory, self.controls.descriptor_address)
    }
}
