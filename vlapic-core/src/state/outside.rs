//! What belongs to an APIC and other formats keep elsewhere.

use super::error::ImportError;
use crate::latches::Latched;
use crate::vector::Vector;

/// What a record of KVM or Xen does not say and the hypervisor knows from elsewhere.
///
/// The level of the LINT pins is not here either: drive them anew by
/// [`Slot::set_lint`](crate::Slot::set_lint). After the import the upcall is as when it was registered:
/// the pending byte decides whether one is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Events not yet taken, and whether the vCPU waits for its SIPI.
    ///
    /// KVM: `kvm_vcpu_events` and the MP state (UNINITIALIZED and INIT_RECEIVED wait; SIPI_RECEIVED
    /// waits and has a SIPI). Xen: a vCPU that is down waits.
    pub latched: Latched,
    /// The vector of the vCPU's upcalls, if one is registered.
    pub upcall_vector: Option<u8>,
    /// Whether a one-shot count that is not known to run has fired.
    pub one_shot: OneShot,
}

/// Whether a one-shot timer whose initial count is not zero has fired: KVM's record says so only while
/// it runs, Xen's never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OneShot {
    /// Not known. It has if its vector is in IRR or ISR; else it has not.
    #[default]
    Unknown,
    /// It has: nothing more comes of it.
    Fired,
    /// It has not. With Xen's record it counts from the start; with KVM's, whose current count is
    /// zero, it is due now.
    Running,
}

impl Outside {
    /// Whether there is a SIPI that nobody waits for.
    pub(super) const fn loses_startup(&self) -> bool {
        let latched = self.latched;
        latched.startup.is_some() && !latched.init && !latched.waits
    }

    pub(super) fn upcall(&self) -> Result<Option<Vector>, ImportError> {
        match self.upcall_vector {
            None => Ok(None),
            Some(raw) => Vector::new(raw).map(Some).ok_or(ImportError::UpcallVector(raw)),
        }
    }
}
