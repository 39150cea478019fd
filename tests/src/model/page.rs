//! The virtual-APIC page as the processor addresses it.

use std::sync::Arc;

use super::memory::Memory;

/// Byte offsets of the page that the processor itself uses.
pub(super) mod offset {
    pub(in crate::model) const VTPR: u32 = 0x080;
    pub(in crate::model) const VPPR: u32 = 0x0a0;
    pub(in crate::model) const VEOI: u32 = 0x0b0;
    pub(in crate::model) const SVR: u32 = 0x0f0;
    pub(in crate::model) const VISR: u32 = 0x100;
    pub(in crate::model) const VIRR: u32 = 0x200;
    pub(in crate::model) const VICR_LO: u32 = 0x300;
    pub(in crate::model) const VICR_HI: u32 = 0x310;
}

/// One 4-KByte page at a physical address, with the accesses that the processor makes to it.
#[derive(Debug, Clone)]
pub struct Page<'m> {
    memory: Arc<Memory<'m>>,
    base: u64,
}

impl<'m> Page<'m> {
    /// The page at physical address `base`.
    pub fn new(memory: Arc<Memory<'m>>, base: u64) -> Self {
        Page { memory, base }
    }

    /// Reads the 32-bit word at a byte offset that is a multiple of 4.
    pub fn load(&self, offset: u32) -> u32 {
        self.memory.load32(self.base + u64::from(offset))
    }

    /// Writes the 32-bit word at a byte offset that is a multiple of 4.
    pub fn store(&self, offset: u32, value: u32) {
        self.memory.store32(self.base + u64::from(offset), value);
    }

    /// Reads 1, 2 or 4 bytes that do not cross a 32-bit word.
    pub fn load_bytes(&self, offset: u32, width: u32) -> u32 {
        let (shift, mask) = lane(offset, width);
        (self.load(offset & !3) >> shift) & mask
    }

    /// Writes 1, 2 or 4 bytes that do not cross a 32-bit word; the other bytes of the word keep their value.
    pub fn store_bytes(&self, offset: u32, width: u32, value: u32) {
        let (shift, mask) = lane(offset, width);
        let address = self.base + u64::from(offset & !3);
        self.memory.update32(address, |old| old & !(mask << shift) | (value & mask) << shift);
    }

    /// Reads the 8 bytes that RDMSR takes from the page.
    pub fn load_msr(&self, offset: u32) -> u64 {
        u64::from(self.load(offset)) | u64::from(self.load(offset + 4)) << 32
    }

    /// Writes the 8 bytes that WRMSR stores in the page.
    pub fn store_msr(&self, offset: u32, value: u64) {
        self.store(offset, value as u32);
        self.store(offset + 4, (value >> 32) as u32);
    }

    /// Bits 7:0 of VTPR.
    pub fn vtpr(&self) -> u8 {
        self.load(offset::VTPR) as u8
    }

    /// Bits 7:0 of VPPR.
    pub fn vppr(&self) -> u8 {
        self.load(offset::VPPR) as u8
    }

    /// Sets a vector's bit in the 256-bit register at `register` (VISR or VIRR).
    pub fn set_vector(&self, register: u32, vector: u8) {
        let (offset, bit) = place(register, vector);
        self.memory.update32(self.base + u64::from(offset), |old| old | bit);
    }

    /// Clears a vector's bit in the 256-bit register at `register`.
    pub fn clear_vector(&self, register: u32, vector: u8) {
        let (offset, bit) = place(register, vector);
        self.memory.update32(self.base + u64::from(offset), |old| old & !bit);
    }

    /// Whether a vector's bit is set in the 256-bit register at `register`.
    pub fn has_vector(&self, register: u32, vector: u8) -> bool {
        let (offset, bit) = place(register, vector);
        self.load(offset) & bit != 0
    }

    /// The highest vector set in the 256-bit register at `register`, or `None` if it is empty.
    pub fn highest(&self, register: u32) -> Option<u8> {
        (0..8).rev().find_map(|index| {
            let bits = self.load(register + index * 0x10);
            bits.checked_ilog2().map(|bit| (index * 32 + bit) as u8)
        })
    }

    /// Merges 64 vectors, the first of which is `group * 64`, into the 256-bit register at `register`.
    pub fn merge_group(&self, register: u32, group: u32, bits: u64) {
        for (half, bits) in [(0, bits as u32), (1, (bits >> 32) as u32)] {
            let offset = register + (group * 2 + half) * 0x10;
            self.memory.update32(self.base + u64::from(offset), |old| old | bits);
        }
    }
}

/// Where a vector's bit lies: byte offset of its 32-bit word, and the mask in it.
fn place(register: u32, vector: u8) -> (u32, u32) {
    (register | u32::from(vector & 0xe0) >> 1, 1 << (vector & 0x1f))
}

/// Shift and (unshifted) mask of `width` bytes inside their 32-bit word.
fn lane(offset: u32, width: u32) -> (u32, u32) {
    (offset % 4 * 8, if width >= 4 { u32::MAX } else { (1 << (width * 8)) - 1 })
}
