//! IPI virtualization.

use super::super::descriptor::Descriptor;
use super::super::exit::VmExit;
use super::super::guest::Guest;
use super::super::interleave::Point;
use super::super::page::offset;
use super::super::physical::PhysicalApic;

impl Guest<'_> {
    /// IPI virtualization of a vector to the vCPU with a virtual APIC ID: posts to the target's descriptor and
    /// notifies its core, or exits if it cannot.
    pub(in crate::model) fn ipi_virtualization(
        &mut self,
        physical: &PhysicalApic,
        vector: u8,
        target: u32,
    ) -> Option<VmExit> {
        let Some(address) = self.target_descriptor(vector, target) else {
            return Some(VmExit::apic_write(offset::VICR_LO));
        };
        Descriptor::new(&self.memory, address).post(vector);
        self.others.reach(Point::IpiPosted);
        let notification = Descriptor::new(&self.memory, address).announce(physical.x2apic, false);
        self.others.reach(Point::IpiAnnounced);
        if let Some(interrupt) = notification {
            self.bus.send(interrupt);
        }
        None
    }

    /// The address of the target's descriptor, or `None` if the processor does not send the IPI itself.
    fn target_descriptor(&self, vector: u8, target: u32) -> Option<u64> {
        if vector < 16 || target > u32::from(self.controls.last_pid_pointer_index) {
            return None;
        }
        let entry =
            self.memory.load64(self.controls.pid_pointer_table_address + 8 * u64::from(target));
        let in_range = entry >> self.physical_width == 0;
        (in_range && entry & 0x3f == 1).then_some(entry & !0x3f)
    }
}
