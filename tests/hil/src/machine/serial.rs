//! A serial port, polled, 115200 baud, 8 data bits, no parity, one stop bit.

use x86::io::{inb, outb};

/// The first serial port of a PC.
pub(crate) const COM1: u16 = 0x3f8;

/// Registers of a 16550 UART by offset. With the divisor latch open (line control bit 7), 0 and 1 are the divisor.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
/// Line status: a byte has come in.
const RECEIVED: u8 = 1 << 0;
/// Line status: the transmitter can take a byte.
const READY: u8 = 1 << 5;
/// Line status: the last byte has left the wire.
const IDLE: u8 = 1 << 6;
/// Far longer than one byte takes at this speed: a port that is not there or hangs costs this once.
const PATIENCE: u32 = 100_000;

/// The port, and whether anything answers there.
#[derive(Debug)]
pub(crate) struct Serial {
    base: u16,
    present: bool,
}

impl Serial {
    pub(crate) const fn new() -> Self {
        Self { base: COM1, present: false }
    }

    /// Programs the port at `base` and finds out by loop-back whether there is one.
    pub(crate) fn initialise(&mut self, base: u16) {
        const PROBE: u8 = 0xa5;
        self.base = base;
        self.write(INTERRUPT_ENABLE, 0);
        self.write(LINE_CONTROL, 0x80);
        self.write(DATA, 1);
        self.write(INTERRUPT_ENABLE, 0);
        self.write(LINE_CONTROL, 0x03);
        self.write(FIFO_CONTROL, 0xc7);
        self.write(MODEM_CONTROL, 0x1b);
        self.write(DATA, PROBE);
        self.present = self.wait(RECEIVED) && self.read(DATA) == PROBE;
        self.write(MODEM_CONTROL, 0x0b);
    }

    pub(crate) fn send(&mut self, byte: u8) {
        if self.present {
            self.present = self.wait(READY);
            self.write(DATA, byte);
        }
    }

    /// Waits until everything sent has left the port.
    pub(crate) fn drain(&mut self) {
        if self.present {
            self.present = self.wait(IDLE);
        }
    }

    fn wait(&self, status: u8) -> bool {
        (0..PATIENCE).any(|_| self.read(LINE_STATUS) & status != 0)
    }

    fn read(&self, register: u16) -> u8 {
        // SAFETY: reading a register of a 16550 UART, or of nothing, has no effect on memory; ring 0 may use any port.
        unsafe { inb(self.base + register) }
    }

    fn write(&self, register: u16, value: u8) {
        // SAFETY: the UART does no DMA, and its interrupts stay off; ring 0 may use any port.
        unsafe { outb(self.base + register, value) }
    }
}
