//! Sending interrupts in x2APIC mode.

use ::x86::fence::{lfence, mfence};
use ::x86::msr::{IA32_X2APIC_ICR, wrmsr};

use super::icr;
use crate::{SendError, SendInterrupt};

/// Sends through the ICR of the calling CPU's local APIC, MSR 830H.
#[derive(Debug)]
pub struct X2ApicSender {
    _built_by_new: (),
}

impl X2ApicSender {
    /// A sender for any CPU that is in x2APIC mode.
    ///
    /// # Safety
    /// For as long as the value is used:
    /// - the code runs at CPL 0, and the local APIC of the CPU it runs on is in x2APIC mode (SDM
    ///   vol. 3, "Extended XAPIC (x2APIC)": WRMSR to 830H raises #GP(0) in any other mode);
    /// - every CPU that an interrupt is sent to has a handler for its vector.
    pub const unsafe fn new() -> Self {
        Self { _built_by_new: () }
    }
}

impl SendInterrupt for X2ApicSender {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        let command =
            (u64::from(icr::x2apic_high(destination)?) << 32) | u64::from(icr::low(vector)?);
        // WRMSR to an x2APIC register does not wait for earlier stores. MFENCE makes them visible,
        // LFENCE keeps WRMSR behind it (SDM vol. 3, "MSR Access in x2APIC Mode").
        mfence();
        lfence();
        // SAFETY: WRMSR to 830H sends an interrupt in x2APIC mode at CPL 0, which the caller of
        // `new` vouched for, and raises #GP(0) only for reserved bits, of which `command` has none:
        // bits 12, 13, 17:16 and 31:20 are 0 (SDM vol. 3, "ICR Operation in x2APIC Mode"). It
        // touches no memory; the receiver runs its own handler.
        unsafe { wrmsr(IA32_X2APIC_ICR, command) };
        Ok(())
    }
}
