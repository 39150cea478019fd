//! The MSR bitmap: which RDMSR and WRMSR of the guest exit (SDM Vol. 3C 25.6.9).

use x86::msr;

use crate::machine::frames::OwnedFrame;

/// The registers that VM entry and exit switch by themselves, so that guests may have them.
pub(crate) const SWITCHED: [u32; 3] = [msr::IA32_EFER, msr::IA32_FS_BASE, msr::IA32_GS_BASE];

/// One vCPU's bitmap. A set bit is an exit.
#[derive(Debug)]
pub(crate) struct MsrBitmap {
    frame: OwnedFrame,
}

impl MsrBitmap {
    /// Everything exits, but for [`SWITCHED`].
    pub(crate) fn new() -> Self {
        let mut bitmap = Self { frame: OwnedFrame::new() };
        bitmap.frame.bytes().fill(0xff);
        for register in SWITCHED {
            bitmap.set_exits(register, false, false);
        }
        bitmap
    }

    /// Chooses whether reads and writes of `register` exit. Registers outside the two ranges always do.
    pub(crate) fn set_exits(&mut self, register: u32, read: bool, write: bool) {
        const WRITES: usize = 2048;
        let base = match register {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return,
        };
        let byte = base + (register as usize & 0x1fff) / 8;
        for (offset, exits) in [(byte, read), (byte + WRITES, write)] {
            let bit = 1 << (register % 8);
            let byte = &mut self.frame.bytes()[offset];
            *byte = if exits { *byte | bit } else { *byte & !bit };
        }
    }

    /// The 4096 bytes, for a driver that keeps its own list of registers.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.frame.bytes()
    }

    /// For the VMCS.
    pub(crate) fn address(&self) -> u64 {
        self.frame.physical_address()
    }
}
