//! Where accepted vectors wait until the vCPU's APIC page may take them.

use crate::page::ApicPage;
use crate::vector::{Trigger, Vector};

/// How the target of a post learns of it. The poster has to carry it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the target must be told, or it may never look"]
#[non_exhaustive]
pub enum Notify {
    /// Nothing to do: somebody else has told it, or nothing changed.
    None,
    /// Send physical interrupt `vector` to physical APIC ID `destination`.
    ///
    /// With posted interrupts this does not make the target leave guest mode.
    Interrupt {
        /// The notification vector.
        vector: u8,
        /// 32-bit x2APIC ID, or the 8-bit xAPIC ID, of a physical APIC.
        destination: u32,
    },
    /// Ring the doorbell of the CPU with physical APIC ID `destination` (AMD: MSR C001_011B). If
    /// that is the calling CPU it may be left out.
    ///
    /// The vector is in the page already. A vCPU that runs there takes it without an exit; rung in
    /// vain, the doorbell is harmless.
    Doorbell {
        /// The physical APIC ID.
        destination: u32,
    },
    /// If the vCPU is in guest mode make it exit, if it sleeps wake it; in any case it has to go
    /// through its entry work once more before it next runs guest code.
    Kick,
    /// The vCPU sleeps: wake it.
    Wake,
}

/// Where the accepted vectors of one vCPU wait: the page's IRR for plain emulation
/// ([`DirectInbox`]), a posted-interrupt descriptor on Intel.
///
/// Implemented by the backends; a hypervisor picks one and does not call it.
pub trait Inbox {
    /// Makes `vector` pending. Acceptance was decided and TMR set before; any thread may call.
    fn post(&self, page: &ApicPage, vector: Vector, trigger: Trigger) -> Notify;

    /// Something other than a vector waits for the owner (a latch, an owed upcall).
    fn attention(&self) -> Notify;

    /// A vector has got into the page's IRR without [`post`](Self::post): hardware has set it and
    /// left the telling to software (AVIC's exit 401, the IOMMU's guest log); any thread may call.
    fn announce(&self) -> Notify {
        self.attention()
    }

    /// Takes back a post of `vector` that raced with INIT, and says whether it still waited; any
    /// thread may call. A post that can no longer be taken back is left, and the answer is `false`.
    fn retract(&self, page: &ApicPage, vector: Vector) -> bool;

    /// Owner, outside guest mode: moves everything posted so far into the page's IRR.
    fn collect(&self, page: &ApicPage);

    /// Owner, outside guest mode: as [`collect`](Self::collect), but looks whatever the hints of who
    /// posted say. For a state that is to be exported.
    fn drain(&self, page: &ApicPage) {
        self.collect(page);
    }

    /// Owner, outside guest mode: forgets what was posted (INIT, RESET).
    ///
    /// Each word has to be cleared with a release operation at least: a poster that finds it
    /// cleared must see that INIT has begun.
    fn discard(&self);
}

/// Plain emulation: the page's own IRR, set with a locked OR.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectInbox;

impl Inbox for DirectInbox {
    #[inline]
    fn post(&self, page: &ApicPage, vector: Vector, _: Trigger) -> Notify {
        if page.irr().insert(vector) { Notify::Kick } else { Notify::None }
    }

    #[inline]
    fn attention(&self) -> Notify {
        Notify::Kick
    }

    fn retract(&self, page: &ApicPage, vector: Vector) -> bool {
        page.irr().remove(vector)
    }

    #[inline]
    fn collect(&self, _: &ApicPage) {}

    #[inline]
    fn discard(&self) {}
}
