//! The IOMMU's log of interrupts for vCPUs that do not run.

use std::sync::Arc;

use crate::model::{Memory, PhysicalBus, PhysicalInterrupt};

/// Offsets of the IOMMU's registers that belong to the log.
pub mod register {
    /// Control: bit 28 GALogEn, bit 29 GAIntEn.
    pub const CONTROL: u32 = 0x18;
    /// Base address in 51:12, size code in 59:56.
    pub const LOG_BASE: u32 = 0xe0;
    /// Where the tail is written back; 0 writes nothing.
    pub const LOG_TAIL_ADDRESS: u32 = 0xe8;
    /// Byte offset of the entry that software reads next.
    pub const LOG_HEAD: u32 = 0x2040;
    /// Byte offset of the entry that hardware writes next.
    pub const LOG_TAIL: u32 = 0x2048;
    /// Bit 8 GALogRun; bits 9 (overflow) and 10 (GAInt) are cleared by writing 1.
    pub const STATUS: u32 = 0x2020;
}

const LOG_ENABLE: u64 = 1 << 28;
const INTERRUPT_ENABLE: u64 = 1 << 29;
const RUN: u64 = 1 << 8;
const OVERFLOW: u64 = 1 << 9;
const INTERRUPT: u64 = 1 << 10;

/// Bytes of an entry.
const ENTRY: u64 = 8;
/// The size code for 512 entries, the only size there is.
const SIZE_CODE: u64 = 8;
/// Bytes of the log.
const LENGTH: u64 = 512 * ENTRY;
/// Entry code: an interrupt for a vCPU that does not run.
const GUEST_INTERRUPT: u64 = 1;

/// The guest-APIC log.
#[derive(Debug)]
pub struct GaLog<'m> {
    /// The interrupt that the IOMMU raises with GAIntEn.
    pub interrupt: Option<PhysicalInterrupt>,
    memory: Arc<Memory<'m>>,
    bus: Arc<PhysicalBus>,
    control: u64,
    base: u64,
    tail_address: u64,
    head: u64,
    tail: u64,
    status: u64,
}

impl<'m> GaLog<'m> {
    pub(super) fn new(memory: Arc<Memory<'m>>, bus: Arc<PhysicalBus>) -> Self {
        GaLog {
            interrupt: None,
            memory,
            bus,
            control: 0,
            base: 0,
            tail_address: 0,
            head: 0,
            tail: 0,
            status: 0,
        }
    }

    /// Reads a 64-bit register; registers that the model does not have read as 0.
    #[must_use]
    pub fn read(&self, register: u32) -> u64 {
        match register {
            register::CONTROL => self.control,
            register::LOG_BASE => self.base,
            register::LOG_TAIL_ADDRESS => self.tail_address,
            register::LOG_HEAD => self.head,
            register::LOG_TAIL => self.tail,
            register::STATUS => self.status,
            _ => 0,
        }
    }

    /// Writes a 64-bit register; registers that the model does not have are not written.
    pub fn write(&mut self, register: u32, value: u64) {
        match register {
            register::CONTROL => self.write_control(value),
            register::LOG_BASE => self.base = value,
            register::LOG_TAIL_ADDRESS => self.tail_address = value,
            register::LOG_HEAD => self.head = value & (LENGTH - ENTRY),
            register::LOG_TAIL => self.tail = value & (LENGTH - ENTRY),
            register::STATUS => self.status &= !(value & (OVERFLOW | INTERRUPT)),
            _ => {}
        }
    }

    /// Disabling stops the log; enabling starts it, unless an overflow has not been cleared.
    fn write_control(&mut self, value: u64) {
        self.control = value;
        let size_is_valid = self.base >> 56 & 0xf == SIZE_CODE;
        let runs = value & LOG_ENABLE != 0 && self.status & OVERFLOW == 0 && size_is_valid;
        self.status = self.status & !RUN | if runs { RUN } else { 0 };
    }

    /// Logs an interrupt. A full log stops: the entry is lost, and so are those after it until software starts it again.
    ///
    /// The manual does not say whether each entry interrupts or only the one that sets GAInt. The model does the
    /// latter, with which more goes wrong.
    pub fn append(&mut self, device: u16, tag: u32) {
        if self.status & RUN == 0 {
            return;
        }
        let next = (self.tail + ENTRY) % LENGTH;
        if next == self.head {
            self.status = self.status & !RUN | OVERFLOW;
        } else {
            let entry = GUEST_INTERRUPT << 60 | u64::from(device) << 32 | u64::from(tag);
            let base = self.base & 0x000f_ffff_ffff_f000;
            self.memory.update64(base + self.tail, |_| entry);
            self.tail = next;
            if self.tail_address != 0 {
                self.memory.update64(self.tail_address & !7, |_| next);
            }
        }
        let was_set = self.status & INTERRUPT != 0;
        if self.control & INTERRUPT_ENABLE != 0 && !was_set {
            self.status |= INTERRUPT;
            if let Some(interrupt) = self.interrupt {
                self.bus.send(interrupt);
            }
        }
    }
}
