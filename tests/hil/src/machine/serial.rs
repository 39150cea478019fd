//! The first serial port, polled, 115200 baud, 8 data bits, no parity, one stop bit.

use x86::io::{inb, outb};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
/// Line status: the transmitter can take a byte.
const READY: u8 = 1 << 5;
/// Line status: the last byte has left the wire.
const IDLE: u8 = 1 << 6;
/// Far longer than one byte takes at this speed: a port that is not there or hangs costs this once.
const PATIENCE: u32 = 100_000;

/// The port, and whether anything answers there.
#[derive(Debug)]
pub(crate) struct Serial {
    present: bool,
}

impl Serial {
    pub(crate) const fn new() -> Self {
        Self { present: false }
    }

    /// Programs the port and finds out by loop-back whether there is one.
    pub(crate) fn initialise(&mut self) {
        const PROBE: u8 = 0xa5;
        for (register, value) in [
            (1, 0x00),
            (3, 0x80),
            (0, 0x01),
            (1, 0x00),
            (3, 0x03),
            (2, 0xc7),
            (4, 0x1b),
            (0, PROBE),
        ] {
            write(COM1 + register, value);
        }
        self.present = (0..PATIENCE).any(|_| read(LINE_STATUS) & 1 != 0) && read(COM1) == PROBE;
        write(COM1 + 4, 0x0b);
    }

    pub(crate) fn send(&mut self, byte: u8) {
        if self.present {
            self.present = self.wait(READY);
            write(COM1, byte);
        }
    }

    /// Waits until everything sent has left the port.
    pub(crate) fn drain(&mut self) {
        if self.present {
            self.present = self.wait(IDLE);
        }
    }

    fn wait(&self, status: u8) -> bool {
        (0..PATIENCE).any(|_| read(LINE_STATUS) & status != 0)
    }
}

fn read(port: u16) -> u8 {
    // SAFETY: reading a register of a 16550 UART, or of nothing, has no effect on memory; ring 0 may use any port.
    unsafe { inb(port) }
}

fn write(port: u16, value: u8) {
    // SAFETY: the UART does no DMA, and its interrupts stay off; ring 0 may use any port.
    unsafe { outb(port, value) }
}
