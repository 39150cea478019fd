//! Event upcalls: an interrupt that the hypervisor itself raises, exactly once per edge.
//!
//! A guest shares a *pending* byte with its hypervisor and names a vector. The hypervisor sets the
//! byte; its going from 0 to 1 is the edge, and each edge is worth one interrupt of that vector,
//! delivered as soon as the APIC accepts interrupts and if the byte is still set by then.
//!
//! What makes this hard is that the guest may enable its APIC by a store nobody is told of. So an
//! edge first becomes *owed*, then the poster looks at SVR: either it sees the APIC accepting and
//! delivers, or it leaves the debt and makes the vCPU go through its entry work, which looks again
//! ([`LocalApic::prepare`](crate::LocalApic::prepare)). Whoever clears the debt delivers; nobody
//! else does.
//!
//! No edge is lost. One may count twice in a single case: a debt from earlier, whose byte the guest
//! cleared without an upcall (or which RESET or INIT left to be decided), is paid on the strength
//! of a byte that another CPU has just set and has not yet recorded as a debt, and the guest takes
//! that interrupt, but does not clear the byte, before it does. Byte and debt are two words.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use crate::inbox::{Inbox, Notify};
use crate::slot::{Outcome, Slot};
use crate::vector::{Trigger, Vector};

/// What becomes of an edge that comes while the APIC does not accept interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RefusedUpcall {
    /// It is owed until the APIC accepts it.
    #[default]
    Owed,
    /// It is lost, as any edge-triggered interrupt is.
    Lost,
    /// It is owed while the vCPU is online, and lost while it waits for its start-up IPI.
    OwedWhileOnline,
}

/// The vector is not one an APIC delivers (below 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalUpcallVector;

impl core::fmt::Display for IllegalUpcallVector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("an upcall vector must be 16 or higher")
    }
}

impl core::error::Error for IllegalUpcallVector {}

/// Vector (bits 7:0, zero = none registered) and debt (bit 8) of one vCPU's upcall.
///
/// Both stand in one word, so that who registers and who notifies see each other's step.
#[derive(Debug)]
pub(crate) struct Upcall(AtomicU32);

const VECTOR: u32 = 0xFF;
const OWED: u32 = 1 << 8;

impl Upcall {
    /// No vector, and a debt: the pending byte decides when there is a vector.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(OWED))
    }

    fn vector(&self) -> Option<Vector> {
        Vector::new(self.0.load(Ordering::Relaxed) as u8)
    }

    /// Registers `vector`; says whether an edge is owed.
    fn register(&self, vector: Vector) -> bool {
        let set = |word| Some(word & !VECTOR | u32::from(vector.get()));
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set) {
            Ok(old) | Err(old) => old & OWED != 0,
        }
    }

    /// Records the debt, before SVR is looked at.
    fn owe(&self) {
        self.0.fetch_or(OWED, Ordering::SeqCst);
    }

    /// Clears the debt; whoever gets `true` delivers.
    fn settle(&self) -> bool {
        self.0.fetch_and(!OWED, Ordering::SeqCst) & OWED != 0
    }

    /// One relaxed load: whether there is a debt and a vector to pay it with.
    #[inline]
    pub(crate) fn owed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > OWED
    }

    /// RESET: no vector, and the debt as when new.
    pub(crate) fn reset(&self) {
        self.0.store(OWED, Ordering::SeqCst);
    }

    /// Vector (zero: none) and debt.
    pub(crate) fn parts(&self) -> (u8, bool) {
        let word = self.0.load(Ordering::SeqCst);
        (word as u8, word & OWED != 0)
    }

    /// A restored state: the vector, if one is registered, and whether an edge is owed.
    pub(crate) fn restore(&self, vector: Option<Vector>, owed: bool) {
        let vector = vector.map_or(0, |vector| u32::from(vector.get()));
        self.0.store(vector | if owed { OWED } else { 0 }, Ordering::SeqCst);
    }

    /// INIT emptied IRR, and with it an upcall that may have been delivered but not taken. The
    /// debt starts anew: the pending byte decides when the APIC next accepts.
    pub(crate) fn init(&self, policy: RefusedUpcall) {
        match policy {
            RefusedUpcall::Owed => self.owe(),
            RefusedUpcall::Lost | RefusedUpcall::OwedWhileOnline => {
                self.settle();
            }
        }
    }
}

impl<I: Inbox> Slot<'_, I> {
    /// Registers `vector` for this vCPU's upcalls; any CPU may call, at any time.
    ///
    /// If an edge came before there was a vector, or `pending` is set at the first registration
    /// since RESET, the upcall is asserted now, under the policy for refused ones. If nothing is
    /// pending no upcall comes. An older vector that has reached IRR stays there, as hardware
    /// cannot recall an interrupt, and its edge is not asserted again with the new vector.
    ///
    /// # Errors
    /// [`IllegalUpcallVector`] for vectors 0 to 15; nothing changes. A vector, once registered, is
    /// only dropped by RESET.
    pub fn register_upcall(
        &self,
        vector: u8,
        pending: &AtomicU8,
    ) -> Result<Notify, IllegalUpcallVector> {
        let vector = Vector::new(vector).ok_or(IllegalUpcallVector)?;
        if self.upcall.register(vector) {
            return Ok(self.pay_or_leave_owed(pending));
        }
        Ok(Notify::None)
    }

    /// Sets bit 0 of `pending` and, if it was clear, asserts the upcall; any CPU may call.
    ///
    /// Ordering: the locked OR on `pending` and the debt come before a SeqCst fence, which comes
    /// before SVR is loaded; [`LocalApic::prepare`](crate::LocalApic::prepare) has the matching
    /// half.
    pub fn notify_upcall(&self, pending: &AtomicU8) -> Notify {
        if pending.fetch_or(1, Ordering::SeqCst) & 1 != 0 {
            return Notify::None;
        }
        self.upcall.owe();
        self.pay_or_leave_owed(pending)
    }

    fn pay_or_leave_owed(&self, pending: &AtomicU8) -> Notify {
        fence(Ordering::SeqCst);
        match self.pay_upcall(pending) {
            UpcallDebt::Paid(notify) => notify,
            UpcallDebt::None => Notify::None,
            UpcallDebt::Owed if self.keeps_refused_upcall() => self.inbox().attention(),
            UpcallDebt::Owed => {
                self.upcall.settle();
                Notify::None
            }
        }
    }

    fn keeps_refused_upcall(&self) -> bool {
        match self.refused_upcall {
            RefusedUpcall::Owed => true,
            RefusedUpcall::Lost => false,
            RefusedUpcall::OwedWhileOnline => self.online(),
        }
    }

    /// Delivers an owed upcall if the APIC accepts now. The caller has put a SeqCst fence between
    /// its own last store (the debt, or SVR) and this.
    pub(crate) fn pay_upcall(&self, pending: &AtomicU8) -> UpcallDebt {
        if !self.upcall.owed() {
            return UpcallDebt::None;
        }
        if !self.accepts() {
            return self.keep_if_pending(pending);
        }
        let Some(vector) = self.upcall.vector() else {
            return UpcallDebt::None;
        };
        if !self.upcall.settle() || !is_set(pending) {
            return UpcallDebt::None;
        }
        let receipt = self.request(vector.get(), Trigger::Edge);
        if receipt.outcome == Outcome::Accepted {
            UpcallDebt::Paid(receipt.notify)
        } else {
            // The guest disabled its APIC between the two looks. It may have enabled it again, and
            // the vCPU found no debt; a poster answers by making it look once more.
            self.upcall.owe();
            UpcallDebt::Owed
        }
    }

    /// A debt whose byte the guest has cleared without an upcall is none; the next edge brings its
    /// own, so nobody has to watch SVR for this one.
    fn keep_if_pending(&self, pending: &AtomicU8) -> UpcallDebt {
        if is_set(pending) {
            return UpcallDebt::Owed;
        }
        self.upcall.settle();
        if !is_set(pending) {
            return UpcallDebt::None;
        }
        // The debt of an edge that came in between may just have been cleared.
        self.upcall.owe();
        UpcallDebt::Owed
    }
}

fn is_set(pending: &AtomicU8) -> bool {
    pending.load(Ordering::SeqCst) & 1 != 0
}

/// What is left of an owed upcall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpcallDebt {
    /// Nothing was owed, or it was no longer wanted.
    None,
    /// Delivered.
    Paid(Notify),
    /// Still owed.
    Owed,
}
