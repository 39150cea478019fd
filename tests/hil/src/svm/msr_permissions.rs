//! The MSR permission map: which RDMSR and WRMSR of the guest exit (APM Vol. 2 15.11).

use core::fmt;

use spin::Mutex;
use x86::msr;

use crate::machine::memory::{self, FRAME_SIZE, Frame};

/// The registers that VMRUN, VMLOAD, VMSAVE and #VMEXIT switch, so that guests may have them.
pub(crate) const SWITCHED: [u32; 3] = [msr::IA32_EFER, msr::IA32_FS_BASE, msr::IA32_GS_BASE];

/// One vCPU's map: two bits a register, read and write. A set bit is an exit.
pub(crate) struct MsrPermissions {
    /// Two, one behind the other.
    frames: Option<&'static mut [Frame]>,
}

/// Maps of vCPUs that are no more.
static FREE: Mutex<[Option<&'static mut [Frame]>; 32]> = Mutex::new([const { None }; 32]);

impl MsrPermissions {
    /// Everything exits, but for [`SWITCHED`].
    pub(crate) fn new() -> Self {
        let used = FREE.lock().iter_mut().find_map(Option::take);
        let frames = used.unwrap_or_else(|| memory::alloc_frames(2));
        frames.iter_mut().for_each(|frame| frame.0.fill(0xff));
        let mut map = Self { frames: Some(frames) };
        for register in SWITCHED {
            map.set_exits(register, false, false);
        }
        map
    }

    /// Chooses whether reads and writes of `register` exit. Registers outside the three ranges always do.
    pub(crate) fn set_exits(&mut self, register: u32, read: bool, write: bool) {
        let base = match register {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 0x800,
            0xc001_0000..=0xc001_1fff => 0x1000,
            _ => return,
        };
        let place = base + (register as usize & 0x1fff) / 4;
        let shift = register % 4 * 2;
        let bits = u8::from(read) | u8::from(write) << 1;
        let frame = self.frames.as_mut().and_then(|frames| frames.get_mut(place / FRAME_SIZE));
        if let Some(frame) = frame {
            let byte = &mut frame.0[place % FRAME_SIZE];
            *byte = *byte & !(3 << shift) | bits << shift;
        }
    }

    /// For the control block.
    pub(crate) fn address(&self) -> u64 {
        self.frames.as_ref().map_or(0, |frames| frames[0].physical_address())
    }
}

impl Drop for MsrPermissions {
    fn drop(&mut self) {
        // If there is no room to remember them, the frames are lost.
        if let Some(slot) = FREE.lock().iter_mut().find(|slot| slot.is_none()) {
            *slot = self.frames.take();
        }
    }
}

impl fmt::Debug for MsrPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsrPermissions({:#x})", self.address())
    }
}
