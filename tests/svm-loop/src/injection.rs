//! Events in the VMCB: those that VMRUN delivers, and whether the guest could take one.

use avic::{Field, Vmcb};

const EVENT_INJECTION: u16 = Field::EventInjection as u16;
/// EXITINTINFO: the event during whose delivery the exit happened.
const EXIT_INTERRUPT_INFO: u16 = 0x088;
const INTERRUPT_SHADOW: u16 = Field::InterruptShadow as u16;
const RFLAGS: u16 = 0x570;

const INTERRUPT_FLAG: u64 = 1 << 9;
/// Of both event words (APM Vol. 2 15.20).
const VALID: u64 = 1 << 31;
const NMI: u64 = VALID | 2 << 8 | 2;
const EXCEPTION: u64 = VALID | 3 << 8;
const ERROR_CODE: u64 = 1 << 11;
const GENERAL_PROTECTION: u64 = EXCEPTION | ERROR_CODE | 13;

/// Whether the next entry delivers an event already.
pub(crate) fn is_injecting(vmcb: &impl Vmcb) -> bool {
    vmcb.load(EVENT_INJECTION) & VALID != 0
}

/// RFLAGS.IF.
pub(crate) fn interrupts_enabled(vmcb: &impl Vmcb) -> bool {
    vmcb.load(RFLAGS) & INTERRUPT_FLAG != 0
}

/// Whether the guest could take an external interrupt now: IF is 1, and no STI or load of SS holds it off.
pub(crate) fn is_interruptible(vmcb: &impl Vmcb) -> bool {
    interrupts_enabled(vmcb) && vmcb.load(INTERRUPT_SHADOW) & 1 == 0
}

/// The next entry delivers an external interrupt.
pub(crate) fn inject(vmcb: &mut impl Vmcb, vector: u8) {
    vmcb.store(EVENT_INJECTION, VALID | u64::from(vector));
}

/// The next entry delivers an NMI.
pub(crate) fn inject_nmi(vmcb: &mut impl Vmcb) {
    vmcb.store(EVENT_INJECTION, NMI);
}

/// The next entry delivers #GP(0).
pub(crate) fn inject_general_protection(vmcb: &mut impl Vmcb) {
    vmcb.store(EVENT_INJECTION, GENERAL_PROTECTION);
}

/// After an exit: what was to be delivered has been, or was cut short; then it is delivered again.
pub(crate) fn reinject(vmcb: &mut impl Vmcb) {
    let cut_short = vmcb.load(EXIT_INTERRUPT_INFO);
    vmcb.store(EVENT_INJECTION, if cut_short & VALID != 0 { cut_short } else { 0 });
}
