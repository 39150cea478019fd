//! The MSR bitmap: which RDMSR and WRMSR of the guest exit (SDM Vol. 3C 25.6.9).

use core::sync::atomic::{AtomicU8, Ordering};

use x86::msr;

use crate::machine::memory;

/// One vCPU's bitmap. A set bit is an exit.
#[derive(Debug)]
pub(crate) struct MsrBitmap {
    bytes: &'static [AtomicU8; 4096],
}

impl MsrBitmap {
    /// Everything exits, but for the registers that VM entry and exit switch by themselves: EFER, FS and GS base.
    pub(crate) fn new() -> Self {
        let bitmap = Self { bytes: memory::place([const { AtomicU8::new(0xff) }; 4096]) };
        for register in [msr::IA32_EFER, msr::IA32_FS_BASE, msr::IA32_GS_BASE] {
            bitmap.set_exits(register, false, false);
        }
        bitmap
    }

    /// Chooses whether reads and writes of `register` exit. Registers outside the two ranges always do.
    pub(crate) fn set_exits(&self, register: u32, read: bool, write: bool) {
        const WRITES: usize = 2048;
        let base = match register {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return,
        };
        let byte = base + (register as usize & 0x1fff) / 8;
        for (offset, exits) in [(byte, read), (byte + WRITES, write)] {
            let bit = 1 << (register % 8);
            if exits {
                self.bytes[offset].fetch_or(bit, Ordering::Relaxed);
            } else {
                self.bytes[offset].fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    /// The 4096 bytes, for a driver that keeps its own list of registers.
    pub(crate) fn bytes(&self) -> &'static [AtomicU8; 4096] {
        self.bytes
    }

    /// For the VMCS.
    pub(crate) fn address(&self) -> u64 {
        core::ptr::from_ref(self.bytes) as u64
    }
}
