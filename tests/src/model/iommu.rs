//! Interrupt remapping of device interrupts (VT-d), posted format.

use std::sync::Arc;

use super::bus::PhysicalBus;
use super::descriptor::Descriptor;
use super::memory::Memory;

/// A remapping unit: takes an interrupt-remapping entry and posts the interrupt it describes.
#[derive(Debug, Clone)]
pub struct Iommu<'m> {
    memory: Arc<Memory<'m>>,
    bus: Arc<PhysicalBus>,
    /// Extended interrupt mode: destinations are 32-bit x2APIC IDs.
    pub extended_interrupt_mode: bool,
}

/// Why a device interrupt was blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemapFault {
    /// The entry's present bit is 0.
    NotPresent,
    /// The entry has a reserved bit set.
    Reserved,
    /// The entry is in remapped format, which the model does not carry out.
    NotPosted,
}

/// Bits 13:12, 7:2, 31:24 and 37:32 of the low half.
const RESERVED_LOW: u64 = 0x3f_ff00_30fc;
/// Bits 95:84.
const RESERVED_HIGH: u64 = 0xfff0_0000;

impl<'m> Iommu<'m> {
    /// A unit that posts to `memory` and notifies over `bus`.
    pub fn new(
        memory: Arc<Memory<'m>>,
        bus: Arc<PhysicalBus>,
        extended_interrupt_mode: bool,
    ) -> Self {
        Iommu { memory, bus, extended_interrupt_mode }
    }

    /// A device raises the interrupt whose remapping entry is `entry` (bits 63:0, bits 127:64).
    ///
    /// # Errors
    /// If the entry blocks the interrupt.
    pub fn interrupt(&self, entry: [u64; 2]) -> Result<(), RemapFault> {
        let [low, high] = entry;
        if low & 1 == 0 {
            return Err(RemapFault::NotPresent);
        }
        if low >> 15 & 1 == 0 {
            return Err(RemapFault::NotPosted);
        }
        if low & RESERVED_LOW != 0 || high & RESERVED_HIGH != 0 {
            return Err(RemapFault::Reserved);
        }
        let urgent = low >> 14 & 1 != 0;
        let address = (low >> 38) << 6 | high & 0xffff_ffff_0000_0000;
        let descriptor = Descriptor::new(&self.memory, address);
        descriptor.post((low >> 16) as u8);
        if let Some(notification) = descriptor.announce(self.extended_interrupt_mode, urgent) {
            self.bus.send(notification);
        }
        Ok(())
    }
}
