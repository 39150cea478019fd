//! What the guest programs of cases have in common. All of it runs in guest mode.

use super::Mode;
use crate::guest::{Apic, Context, Fault, apic, cpu};

/// Bit 10 of IA32_APIC_BASE.
const EXTD: u64 = 1 << 10;

/// Switches the APIC to `mode`, from xAPIC mode, and tells the handlers.
pub(super) fn enter_mode(context: &Context, mode: Mode) -> Result<(), Fault> {
    if mode == Mode::X2Apic {
        let base = cpu::read_msr(apic::APIC_BASE_MSR)?;
        cpu::write_msr(apic::APIC_BASE_MSR, base | EXTD)?;
        context.set_apic(Apic::X2Apic);
    }
    Ok(())
}

/// Switches the APIC to `mode`, enables it with spurious vector FF, and turns interrupts on.
pub(super) fn enable_apic(context: &Context, mode: Mode) -> Result<(), Fault> {
    enter_mode(context, mode)?;
    apic::write(context, apic::SVR, 0x1ff)?;
    cpu::interrupts_on();
    Ok(())
}

/// A mode as a guest program's argument, and back.
pub(super) const fn argument(mode: Mode) -> u64 {
    mode as u64
}

/// The mode that [`argument`] made this of.
pub(super) const fn mode(argument: u64) -> Mode {
    if argument & 1 == 0 { Mode::XApic } else { Mode::X2Apic }
}
