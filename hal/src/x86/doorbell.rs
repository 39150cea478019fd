//! AMD's AVIC doorbell register.

use core::sync::atomic::{Ordering, fence};

use crate::{Doorbell, SendError};

/// MSR C001_011B (APM Vol. 2 15.29.8): a physical APIC ID written to it rings that CPU's doorbell.
const DOORBELL: u32 = 0xC001_011B;

/// Rings doorbells by WRMSR.
///
/// The manual gives the register 8 bits of APIC ID; processors in use take 12. Which it is, is for
/// the caller to know: IDs up to FFF are written.
#[derive(Debug)]
pub struct AvicDoorbell {
    _built_by_new: (),
}

impl AvicDoorbell {
    /// The register of whichever CPU makes the call.
    ///
    /// # Safety
    /// For as long as the value is used, the code runs at CPL 0 on a processor with AVIC, and every
    /// ID that is rung fits the processor's register: anything else is #GP (APM Vol. 2 15.29.8).
    pub const unsafe fn new() -> Self {
        Self { _built_by_new: () }
    }
}

impl Doorbell for AvicDoorbell {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        if destination > 0xFFF {
            return Err(SendError::Destination(destination));
        }
        // The register's write need not wait for earlier stores (APM Vol. 2 15.29.8: relaxed
        // serialization), so they are made visible first.
        fence(Ordering::SeqCst);
        // SAFETY: WRMSR needs CPL 0 and an existing register, for which the caller of `new`
        // vouched. The doorbell makes another CPU look at an IRR and touches no memory of ours
        // (APM Vol. 2 15.29.8).
        unsafe { ::x86::msr::wrmsr(DOORBELL, u64::from(destination)) };
        Ok(())
    }
}
