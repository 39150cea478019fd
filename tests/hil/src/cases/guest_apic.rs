//! What guest programs do with their APIC, in either mode. All of it runs in guest mode.

use crate::guest::{Apic, Context, Fault, apic, cpu};

/// Page offsets of registers (SDM Vol. 3A Table 11-1).
pub(super) const LDR: u16 = 0xd0;
pub(super) const DFR: u16 = 0xe0;
pub(super) const PPR: u16 = 0xa0;
pub(super) const ISR: u16 = 0x100;
pub(super) const TMR: u16 = 0x180;
pub(super) const IRR: u16 = 0x200;
pub(super) const ESR: u16 = 0x280;
pub(super) const ICR_LOW: u16 = 0x300;
pub(super) const ICR_HIGH: u16 = 0x310;
pub(super) const LVT_TIMER: u16 = 0x320;
pub(super) const LVT_LINT0: u16 = 0x350;
pub(super) const LVT_LINT1: u16 = 0x360;
pub(super) const LVT_ERROR: u16 = 0x370;
pub(super) const INITIAL_COUNT: u16 = 0x380;
pub(super) const CURRENT_COUNT: u16 = 0x390;
pub(super) const DIVIDE_CONFIGURATION: u16 = 0x3e0;
pub(super) const SELF_IPI: u16 = 0x3f0;

/// Rounds of [`cpu::wait`] in which an interrupt that can come has come.
pub(super) const SOON: u64 = 1_000_000;
/// Rounds in which one that must not come would have come.
pub(super) const LONG_ENOUGH: u64 = 2_000;

/// A guest program ends with the number of the line that found something wrong.
macro_rules! ensure {
    ($right:expr) => {
        if !$right {
            return u64::from(line!());
        }
    };
}
pub(super) use ensure;

/// Sends itself a vector: by the self-IPI register where there is one, else by ICR.
pub(super) fn self_ipi(context: &Context, vector: u8) {
    match context.apic() {
        Apic::XApic { .. } => self_ipi_by_icr(context, vector),
        Apic::X2Apic => {
            let _ = apic::write(context, SELF_IPI, u64::from(vector));
        }
    }
}

/// Sends itself a vector by ICR, shorthand self.
pub(super) fn self_ipi_by_icr(context: &Context, vector: u8) {
    const SHORTHAND_SELF: u32 = 1 << 18;
    let _ = send(context, SHORTHAND_SELF | u32::from(vector), 0);
}

/// Writes ICR: the low half as it is, and a destination ID.
pub(super) fn send(context: &Context, low: u32, destination: u32) -> Result<(), Fault> {
    match context.apic() {
        Apic::XApic { .. } => {
            apic::write(context, ICR_HIGH, u64::from(destination) << 24)?;
            apic::write(context, ICR_LOW, u64::from(low))
        }
        Apic::X2Apic => {
            apic::write(context, ICR_LOW, u64::from(destination) << 32 | u64::from(low))
        }
    }
}

/// Whether `vector` is in the set of 256 bits that starts at `first`.
pub(super) fn has(context: &Context, first: u16, vector: u8) -> bool {
    let offset = first + u16::from(vector / 32) * 0x10;
    apic::read(context, offset).is_ok_and(|bits| bits >> (vector % 32) & 1 != 0)
}

/// Whether the set of 256 bits that starts at `first` is empty.
pub(super) fn is_empty(context: &Context, first: u16) -> bool {
    (first..first + 0x80).step_by(0x10).all(|offset| apic::read(context, offset) == Ok(0))
}

/// Waits until `vector` was taken so many times, and sees that it is not taken more often.
pub(super) fn taken(context: &Context, vector: u8, count: u32) -> bool {
    cpu::wait_long(SOON, || context.count(vector) >= count);
    cpu::wait(LONG_ENOUGH, || context.count(vector) > count);
    context.count(vector) == count
}
