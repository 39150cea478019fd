//! How a guest talks to its local APIC.

use core::arch::asm;

use super::context::{Apic, Context, Fault};
use super::cpu;

/// Where an xAPIC is after reset.
pub(crate) const DEFAULT_BASE: u64 = 0xfee0_0000;

/// IA32_APIC_BASE.
pub(crate) const APIC_BASE_MSR: u32 = 0x1b;

/// Page offsets of registers (SDM Vol. 3A Table 11-1).
pub(crate) const ID: u16 = 0x20;
pub(crate) const VERSION: u16 = 0x30;
pub(crate) const TPR: u16 = 0x80;
pub(crate) const EOI: u16 = 0xb0;
pub(crate) const SVR: u16 = 0xf0;

/// Ends the highest interrupt in service.
pub(crate) fn end_of_interrupt(context: &Context) {
    // A fault would mean an APIC that is off; then there is nothing to end.
    let _ = write(context, EOI, 0);
}

/// Reads a register by its page offset, through memory or MSR as the context says.
pub(crate) fn read(context: &Context, offset: u16) -> Result<u64, Fault> {
    match context.apic() {
        Apic::XApic { base } => Ok(u64::from(read_memory(base, offset))),
        Apic::X2Apic => cpu::read_msr(msr(offset)),
    }
}

/// Writes a register by its page offset. Memory takes the low 32 bits.
pub(crate) fn write(context: &Context, offset: u16, value: u64) -> Result<(), Fault> {
    match context.apic() {
        Apic::XApic { base } => {
            write_memory(base, offset, value as u32);
            Ok(())
        }
        Apic::X2Apic => cpu::write_msr(msr(offset), value),
    }
}

/// The MSR of the register at a page offset (SDM Vol. 3A 11.12.1.2).
pub(crate) fn msr(offset: u16) -> u32 {
    0x800 + u32::from(offset >> 4)
}

/// A 32-bit load from the APIC page: one MOV.
pub(crate) fn read_memory(base: u64, offset: u16) -> u32 {
    let value: u32;
    // SAFETY: the guest's tables map the page at its APIC base; reading a register changes nothing that Rust knows of.
    unsafe {
        asm!("mov {value:e}, [{address}]", value = out(reg) value, address = in(reg) base + u64::from(offset),
            options(nostack, preserves_flags));
    }
    value
}

/// A 32-bit store to the APIC page: one MOV.
pub(crate) fn write_memory(base: u64, offset: u16, value: u32) {
    // SAFETY: as in `read_memory`. What a store makes the APIC do is interrupts, for which the IDT is ready.
    unsafe {
        asm!("mov [{address}], {value:e}", value = in(reg) value, address = in(reg) base + u64::from(offset),
            options(nostack, preserves_flags));
    }
}

/// A 64-bit store to the APIC page, which no APIC takes well.
pub(crate) fn write_memory_wide(base: u64, offset: u16, value: u64) {
    // SAFETY: as in `write_memory`.
    unsafe {
        asm!("mov [{address}], {value}", value = in(reg) value, address = in(reg) base + u64::from(offset),
            options(nostack, preserves_flags));
    }
}
