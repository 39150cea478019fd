//! Upcalls as hypervisors do them that cache whether an APIC is software-enabled.
//!
//! The flag is refreshed when an exit tells of a write to SVR, and if that leaves the APIC enabled an upcall that is
//! pending is raised again. That is right as long as every such write exits. Here for comparison only.

use std::sync::atomic::{AtomicU8, Ordering};

use vlapic_core::{Inbox, Notify, Slot, Trigger, Vector};

/// The flag and the vector of each vCPU.
#[derive(Debug, Clone)]
pub struct Contrast(Vec<State>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    enabled: bool,
    vector: Option<Vector>,
}

impl Contrast {
    /// For `vcpus` vCPUs, all disabled as after RESET.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self(vec![State::default(); vcpus])
    }

    /// Registers a vector and raises it at once if the flag says so.
    pub fn register<I: Inbox>(
        &mut self,
        index: usize,
        vector: Vector,
        slot: &Slot<'_, I>,
    ) -> Notify {
        self.0[index].vector = Some(vector);
        self.raise(index, slot)
    }

    /// Sets the pending byte and, if it was clear, raises the upcall.
    pub fn notify<I: Inbox>(
        &mut self,
        index: usize,
        slot: &Slot<'_, I>,
        pending: &[AtomicU8],
    ) -> Notify {
        match pending[index].swap(1, Ordering::SeqCst) {
            0 => self.raise(index, slot),
            _ => Notify::None,
        }
    }

    /// An exit told of a write to SVR.
    pub fn svr_written<I: Inbox>(
        &mut self,
        index: usize,
        slot: &Slot<'_, I>,
        pending: &[AtomicU8],
    ) -> Notify {
        let was_enabled = self.0[index].enabled;
        self.0[index].enabled = slot.page().svr().software_enabled();
        if was_enabled || pending[index].load(Ordering::SeqCst) == 0 {
            return Notify::None;
        }
        self.raise(index, slot)
    }

    fn raise<I: Inbox>(&self, index: usize, slot: &Slot<'_, I>) -> Notify {
        match self.0[index] {
            State { enabled: true, vector: Some(vector) } => {
                slot.inbox().post(slot.page(), vector, Trigger::Edge)
            }
            _ => Notify::None,
        }
    }
}
