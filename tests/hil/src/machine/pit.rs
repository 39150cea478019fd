//! Real time from channel 2 of the interval timer, which needs no interrupt.

use x86::io::{inb, outb};

const HERTZ: u64 = 1_193_182;
const CHANNEL_2: u16 = 0x42;
const COMMAND: u16 = 0x43;
/// Bit 0: channel 2's gate. Bit 1: loudspeaker. Bit 5: channel 2's output.
const CONTROL: u16 = 0x61;

/// Reads of the control port after which a timer that does not count is given up; each takes about a microsecond.
const PATIENCE: u32 = 1_000_000;

/// Waits that many microseconds.
pub(crate) fn delay(microseconds: u64) {
    let mut ticks = microseconds * HERTZ / 1_000_000 + 1;
    while ticks > 0 {
        let step = ticks.min(0xffff);
        wait(step as u16);
        ticks -= step;
    }
}

fn wait(ticks: u16) {
    let [low, high] = ticks.to_le_bytes();
    write(CONTROL, read(CONTROL) & 0xfc | 1);
    // Channel 2, low byte then high byte, mode 0: the output rises when the count ends.
    write(COMMAND, 0xb0);
    write(CHANNEL_2, low);
    write(CHANNEL_2, high);
    let _ended = (0..PATIENCE).any(|_| read(CONTROL) & 0x20 != 0);
}

fn read(port: u16) -> u8 {
    // SAFETY: reading the timer's ports has no effect on memory.
    unsafe { inb(port) }
}

fn write(port: u16, value: u8) {
    // SAFETY: channel 2 raises no interrupt, and the loudspeaker stays off.
    unsafe { outb(port, value) }
}
