//! IPI virtualization.

use super::super::bus::PhysicalInterrupt;
use super::super::exit::VmExit;
use super::super::guest::Guest;
use super::super::page::offset;
use super::super::physical::PhysicalApic;

/// ON and SN in the descriptor's 64-bit word at byte 32.
const OUTSTANDING_NOTIFICATION: u64 = 1 << 0;
const SUPPRESS_NOTIFICATION: u64 = 1 << 1;

impl Guest<'_> {
    /// IPI virtualization of a vector to the vCPU with a virtual APIC ID: posts to the target's descriptor and
    /// notifies its core, or exits if it cannot.
    pub(in crate::model) fn ipi_virtualization(
        &mut self,
        physical: &PhysicalApic,
        vector: u8,
        target: u32,
    ) -> Option<VmExit> {
        let Some(descriptor) = self.target_descriptor(vector, target) else {
            return Some(VmExit::apic_write(offset::VICR_LO));
        };
        self.post(descriptor, vector);
        if let Some(interrupt) = self.notification(descriptor, physical.x2apic) {
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

    /// Sets the vector's bit in PIR. The bits are addressed in 64-bit words, as the vector's number says.
    fn post(&self, descriptor: u64, vector: u8) {
        let address = descriptor + u64::from(vector / 64) * 8;
        self.memory.update64(address, |word| word | 1 << (vector % 64));
    }

    /// Sets ON unless ON or SN is already set, and gives the notification to send if it did so.
    fn notification(&self, descriptor: u64, x2apic: bool) -> Option<PhysicalInterrupt> {
        const QUIET: u64 = OUTSTANDING_NOTIFICATION | SUPPRESS_NOTIFICATION;
        let announce = |word: u64| {
            if word & QUIET == 0 { word | OUTSTANDING_NOTIFICATION } else { word }
        };
        let before = self.memory.update64(descriptor + 32, announce)?;
        let vector = (before >> 16) as u8;
        let destination = (before >> 32) as u32;
        let destination = if x2apic { destination } else { destination >> 8 & 0xff };
        (before & QUIET == 0).then_some(PhysicalInterrupt { destination, vector })
    }
}
