//! The posted-interrupt descriptor, as processors and IOMMUs change it.

use super::bus::PhysicalInterrupt;
use super::memory::Memory;

const OUTSTANDING_NOTIFICATION: u64 = 1 << 0;
const SUPPRESS_NOTIFICATION: u64 = 1 << 1;

/// A descriptor at a physical address. Its first 32 bytes are PIR; the 8 bytes after them hold ON, SN, NV and NDST.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor<'a, 'm> {
    memory: &'a Memory<'m>,
    address: u64,
}

impl<'a, 'm> Descriptor<'a, 'm> {
    pub(super) fn new(memory: &'a Memory<'m>, address: u64) -> Self {
        Descriptor { memory, address }
    }

    /// Sets a vector in PIR.
    pub(super) fn post(self, vector: u8) {
        self.memory.update64(self.pir(vector / 64), |word| word | 1 << (vector % 64));
    }

    /// Sets ON, unless it is set or notifications are suppressed and the interrupt is not urgent. Gives the
    /// notification to send if it set ON.
    pub(super) fn announce(self, x2apic: bool, urgent: bool) -> Option<PhysicalInterrupt> {
        let quiet = |word: u64| {
            let suppressed = word & SUPPRESS_NOTIFICATION != 0 && !urgent;
            word & OUTSTANDING_NOTIFICATION != 0 || suppressed
        };
        let change = |word| if quiet(word) { word } else { word | OUTSTANDING_NOTIFICATION };
        let before = self.memory.update64(self.notification_word(), change)?;
        let destination = (before >> 32) as u32;
        let destination = if x2apic { destination } else { destination >> 8 & 0xff };
        (!quiet(before)).then_some(PhysicalInterrupt { destination, vector: (before >> 16) as u8 })
    }

    /// Clears ON and leaves the rest.
    pub(super) fn clear_outstanding_notification(self) {
        self.memory.update64(self.notification_word(), |word| word & !OUTSTANDING_NOTIFICATION);
    }

    /// Reads and clears 64 vectors of PIR, the first of which is `group * 64`.
    pub(super) fn take_group(self, group: u8) -> u64 {
        self.memory.update64(self.pir(group), |_| 0).unwrap_or(0)
    }

    fn pir(self, group: u8) -> u64 {
        self.address + u64::from(group) * 8
    }

    fn notification_word(self) -> u64 {
        self.address + 32
    }
}
