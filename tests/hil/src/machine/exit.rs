//! How a run ends.

use x86::io::{outb, outl};

use super::console;
use super::identity::{self, Machine};

/// QEMU's `isa-debug-exit` where the runner puts it.
const QEMU_EXIT: u16 = 0xf4;
/// Bochs and older QEMU power off when the word `Shutdown` is written here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// Prints the closing record, waits for it to leave, and ends the emulator; a real machine stops here for good.
pub(crate) fn exit(code: u32) -> ! {
    console::close(format_args!("HIL-EXIT {code}\n"));
    if identity::machine() != Machine::Metal {
        // SAFETY: on an emulator this port is the exit device or nothing.
        unsafe { outl(QEMU_EXIT, code) };
        for byte in *b"Shutdown" {
            // SAFETY: on an emulator this port is the shutdown device or nothing.
            unsafe { outb(BOCHS_SHUTDOWN, byte) };
        }
    }
    loop {
        // SAFETY: closing the console has turned interrupts off, so this stops the CPU, as wanted.
        unsafe { x86::halt() };
    }
}
