//! Text out: the serial port and port 0xE9, each call of a macro in one piece.

use core::fmt::{self, Write};

use spin::Mutex;
use x86::io::outb;

use super::{interrupts, serial::Serial};

/// Prints to the console as `core`'s macro of that name would.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::machine::console::write(format_args!($($argument)*)) };
}

/// Prints one line, a record of the protocol.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::machine::console::write(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Prints one line of free text, a `HIL-LOG` record.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::machine::console::write(format_args!("HIL-LOG {}\n", format_args!($($argument)*))) };
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    serial: Serial::new(),
});

/// Bochs and QEMU copy bytes written here to their own output.
const DEBUG_PORT: u16 = 0xe9;

struct Console {
    serial: Serial,
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.serial.send(b'\r');
            }
            self.serial.send(byte);
            // SAFETY: no PC has a device with side effects on memory at this port; ring 0 may use any port.
            unsafe { outb(DEBUG_PORT, byte) };
        }
        Ok(())
    }
}

pub(crate) fn initialise() {
    CONSOLE.lock().serial.initialise();
}

/// Prints; interrupts are off meanwhile, so a handler on this CPU may print as well.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    interrupts::without(|| {
        // Console::write_str never fails; a Display that does has already printed what it could.
        let _ = CONSOLE.lock().write_fmt(text);
    });
}

/// Waits until everything printed has left the machine.
pub(crate) fn drain() {
    interrupts::without(|| CONSOLE.lock().serial.drain());
}

/// For a CPU that is about to end the run: waits a while for the console, then takes it from whoever has it.
pub(crate) fn seize() {
    const PATIENCE: u32 = 1_000_000;
    let free = (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        CONSOLE.try_lock().is_some()
    });
    if !free {
        // SAFETY: the holder is this very CPU, below the fault it is reporting, or stuck. A mixed line is the worst that
        // can come of it: the guarded state is one flag.
        unsafe { CONSOLE.force_unlock() };
    }
}
