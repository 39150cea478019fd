//! Posted-interrupt processing.

use super::super::guest::Guest;
use super::super::page::offset;
use super::super::physical::PhysicalApic;

/// Bit 256 of the descriptor, in its 64-bit word at byte 32.
const OUTSTANDING_NOTIFICATION: u64 = 1;

impl Guest<'_> {
    /// Posted-interrupt processing, after the physical APIC was acknowledged with the notification vector.
    pub(in crate::model) fn posted_interrupt_processing(&mut self, physical: &mut PhysicalApic) {
        self.clear_outstanding_notification();
        physical.end_of_interrupt();
        let mut highest_posted = None;
        for group in 0..4 {
            highest_posted = self.take_posted_group(group).or(highest_posted);
        }
        self.rvi = self.rvi.max(highest_posted.unwrap_or(0));
        self.evaluate();
    }

    fn clear_outstanding_notification(&self) {
        self.memory.update64(self.controls.descriptor_address + 32, |word| {
            word & !OUTSTANDING_NOTIFICATION
        });
    }

    /// Moves 64 posted vectors to VIRR; returns the highest of them.
    fn take_posted_group(&self, group: u32) -> Option<u8> {
        let address = self.controls.descriptor_address + u64::from(group) * 8;
        let posted = self.memory.update64(address, |_| 0).unwrap_or(0);
        self.page.merge_group(offset::VIRR, group, posted);
        posted.checked_ilog2().map(|bit| (group * 64 + bit) as u8)
    }
}
