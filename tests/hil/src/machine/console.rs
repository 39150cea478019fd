//! Text out: the serial port and port 0xE9, each call of a macro in one piece.

use core::fmt::{self, Write};

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use x86::io::outb;

use super::{interrupts, serial::Serial};

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

static CONSOLE: Mutex<Console> = Mutex::new(Console { serial: Serial::new() });

/// Whether the last line has been printed.
static CLOSED: AtomicBool = AtomicBool::new(false);

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

/// Opens the serial port at I/O port `serial`.
pub(crate) fn initialise(serial: u16) {
    CONSOLE.lock().serial.initialise(serial);
}

/// Prints; interrupts are off meanwhile, so a handler on this CPU may print as well.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    interrupts::without(|| {
        // Console::write_str never fails; a Display that does has already printed what it could.
        let _ = CONSOLE.lock().write_fmt(text);
    });
}

/// Prints the very last line, waits until it has left the machine, and keeps the console from all CPUs for good.
pub(crate) fn close(text: fmt::Arguments<'_>) {
    // SAFETY: turning interrupts off only delays them; they stay off, or a handler would wait for ever for the console.
    unsafe { x86::irq::disable() };
    let mut console = CONSOLE.lock();
    CLOSED.store(true, Ordering::Relaxed);
    let _ = console.write_fmt(text);
    console.serial.drain();
    core::mem::forget(console);
}

/// For a CPU that is about to end the run: waits a while for the console, then takes it from whoever has it.
pub(crate) fn seize() {
    const PATIENCE: u32 = 1_000_000;
    while CLOSED.load(Ordering::Relaxed) {
        // The run has ended already, and its last line is out.
        core::hint::spin_loop();
    }
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
