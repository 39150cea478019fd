//! The owner's handle: what only the CPU that runs the vCPU may do.

use core::sync::atomic::{AtomicU8, Ordering, fence};

use crate::backend::Next;
use crate::base::ApicBase;
use crate::inbox::Inbox;
use crate::latches::{Event, Pin};
use crate::lvt::{Lvt, LvtDelivery};
use crate::plain::Plain;
use crate::profile::Profile;
use crate::register::{LvtEntry, Register};
use crate::slot::{Outcome, Slot};
use crate::timer::{Settings, Timer, divide_shift};
use crate::upcall::{IllegalUpcallVector, UpcallDebt};
use crate::vector::{Trigger, Vector};
use crate::vectors::VectorSet;

/// A vCPU's local APIC in the hands of the CPU that runs the vCPU.
///
/// There is one for each [`Slot`], and its methods are called only while the vCPU is outside
/// guest mode. Four kinds of call:
///
/// * guest accesses: [`read_mmio`](Self::read_mmio), [`write_mmio`](Self::write_mmio),
///   [`read_msr`](Self::read_msr), [`write_msr`](Self::write_msr), CR8, and
///   [`after_write`](Self::after_write) where hardware has stored the value already;
/// * entry work: [`take_event`](Self::take_event) until `None`, then [`prepare`](Self::prepare);
/// * delivery without hardware help: [`nominate`](Self::nominate), which consumes nothing, and
///   [`commit`](Self::commit) once the injection is certain;
/// * getters.
///
/// Nothing here calls back, locks, allocates or reads a clock.
pub struct LocalApic<'s, I> {
    pub(crate) slot: &'s Slot<'s, I>,
    pub(crate) timer: Timer,
    /// The guest's pending byte, once it is known.
    pending: Option<&'s AtomicU8>,
    /// The guest may store to its page with nobody told.
    unseen_writes: bool,
    /// The processor may change TPR and leave PPR.
    unseen_tpr: bool,
    /// The registers that are read by a load from the page.
    pub(crate) plain: Plain,
}

/// What [`LocalApic::prepare`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Prepared {
    /// When the APIC timer next expires, in guest TSC ticks: make the vCPU exit by then.
    pub deadline: Option<u64>,
    /// An upcall waits for the APIC to accept interrupts. If the guest can enable its APIC
    /// without an exit, make it exit after a bounded time.
    pub upcall_owed: bool,
    /// [`LocalApic::take_event`] has something.
    pub event: bool,
    /// The vCPU waits for a start-up IPI.
    pub waits: bool,
}

impl Prepared {
    /// Whether the vCPU is to enter. `injecting` says that an event is to be injected already: then
    /// that one goes first, and the others are taken after it.
    #[inline]
    #[must_use]
    pub const fn next(&self, injecting: bool) -> Next {
        if self.event && !injecting {
            Next::TakeEvent
        } else if self.waits {
            Next::AwaitStartup
        } else {
            Next::Enter
        }
    }
}

impl<'s, I: Inbox> LocalApic<'s, I> {
    /// Takes ownership of `slot`, whose APIC is as after RESET: the first owner finds it so, with
    /// the INIT, SIPI and NMI that have been sent to it, and any later one puts it through RESET.
    /// `bootstrap` makes the vCPU the BSP; others wait for INIT and SIPI.
    #[must_use]
    pub fn new(slot: &'s Slot<'s, I>, bootstrap: bool) -> Self {
        let mut apic = Self {
            slot,
            timer: Timer::default(),
            pending: None,
            unseen_writes: false,
            unseen_tpr: false,
            plain: Plain::new(true),
        };
        if slot.latches.adopt(!bootstrap) {
            slot.set_base(ApicBase::reset(bootstrap));
            apic.list();
        } else {
            apic.reset(bootstrap);
        }
        apic
    }

    /// The shared part.
    #[inline]
    #[must_use]
    pub const fn slot(&self) -> &'s Slot<'s, I> {
        self.slot
    }

    /// The next event that is not a vector, in the order the processor takes them.
    ///
    /// For [`Event::Init`] the APIC's own part of INIT has been carried out.
    pub fn take_event(&mut self) -> Option<Event> {
        match self.slot.latches.take()? {
            Event::Init { .. } => {
                self.init();
                Some(Event::Init { waits: !self.slot.base().bootstrap() })
            }
            event => Some(event),
        }
    }

    /// Says where the guest's pending byte is, for as long as there are upcalls: what is owed is
    /// paid, or dropped, by what the byte says when the vCPU next looks
    /// ([`prepare`](Self::prepare)). Until it is told, a vCPU does not look at what it owes.
    ///
    /// Once is enough; RESET changes nothing here. Needed where another CPU registers the vector
    /// ([`Slot::register_upcall`]); [`register_upcall`](Self::register_upcall) does both.
    ///
    /// The owner holds the reference, not the slot: a guest chooses the place of its byte while it
    /// runs, and may choose another after RESET, which a shared slot could follow only with unsafe
    /// code or a lock.
    pub const fn bind_upcall(&mut self, pending: &'s AtomicU8) {
        self.pending = Some(pending);
    }

    /// Registers `vector` for upcalls whose pending byte is `pending`: the owner's
    /// [`Slot::register_upcall`] and [`bind_upcall`](Self::bind_upcall) in one. Nobody has to be told:
    /// the next entry work finds what there is to deliver.
    ///
    /// # Errors
    /// [`IllegalUpcallVector`] for vectors 0 to 15; nothing changes.
    pub fn register_upcall(
        &mut self,
        vector: u8,
        pending: &'s AtomicU8,
    ) -> Result<(), IllegalUpcallVector> {
        let _ = self.slot.register_upcall(vector, pending)?;
        self.bind_upcall(pending);
        Ok(())
    }

    /// The APIC's part of entry work: lets time pass to `now` (guest TSC ticks), looks at the
    /// pins, pays an owed upcall if the APIC accepts by now, and moves everything posted into IRR.
    /// If the APIC is found software-disabled, by whatever store, its LVT entries are masked.
    ///
    /// Call after every exit's handling
    /// and before every entry; calling it more often is harmless.
    ///
    /// Ordering: where an upcall is owed, a SeqCst fence separates whatever the vCPU stored before
    /// (SVR) from the look at the debt, and pairs with the fence in
    /// [`Slot::notify_upcall`]. With nothing owed there are only loads: a poster that refused
    /// makes the vCPU come here again.
    #[inline]
    pub fn prepare(&mut self, now: u64) -> Prepared {
        match self.prepare_if_quiet(now) {
            Some(prepared) => prepared,
            None => self.prepare_all(now),
        }
    }

    /// [`prepare`](Self::prepare) where all it has to do is to collect what is posted: no event, no pin
    /// that did anything, no upcall owed, no timer due, and the vCPU does not wait. Else `None`, and
    /// nothing was done.
    #[inline(always)]
    pub fn prepare_if_quiet(&mut self, now: u64) -> Option<Prepared> {
        if !self.is_quiet(now) {
            return None;
        }
        self.slot.inbox().collect(self.slot.page());
        let deadline = self.next_deadline();
        Some(Prepared { deadline, upcall_owed: false, event: false, waits: false })
    }

    /// Whether all that [`prepare`](Self::prepare) has to do is to collect what is posted. What another
    /// CPU leaves after this look comes with a kick, and so with another look.
    #[inline]
    fn is_quiet(&self, now: u64) -> bool {
        !self.timer.due(now)
            && self.slot.is_listed(self.unseen_writes)
            && self.slot.page().svr().software_enabled()
            && self.slot.latches.idle()
            && !self.slot.upcall.owed()
    }

    #[inline(never)]
    fn prepare_all(&mut self, now: u64) -> Prepared {
        self.pass_time(now);
        self.list();
        if !self.slot.page().svr().software_enabled() {
            self.mask_entries();
        }
        if !self.slot.latches.pins_idle() {
            self.look_at_pins();
        }
        let upcall_owed = self.recheck_upcall();
        self.slot.inbox().collect(self.slot.page());
        let (event, waits) = self.slot.latches.waiting_for();
        Prepared { deadline: self.next_deadline(), upcall_owed, event, waits }
    }

    /// Pays an owed upcall if the APIC accepts by now, and says whether it is still owed: what
    /// [`prepare`](Self::prepare) does of upcalls, for a look between entries. One load if none is
    /// owed.
    #[inline]
    pub fn recheck_upcall(&mut self) -> bool {
        self.slot.upcall.owed() && self.pay_owed_upcall()
    }

    #[cold]
    #[inline(never)]
    fn pay_owed_upcall(&self) -> bool {
        let Some(pending) = self.pending else { return false };
        fence(Ordering::SeqCst);
        self.slot.pay_upcall(pending) == UpcallDebt::Owed
    }

    /// The interrupt that would be delivered now: the highest in IRR, if its class is above PPR's
    /// (SDM Vol. 3A 10.8.4). Consumes nothing; call [`prepare`](Self::prepare) first.
    #[inline]
    #[must_use]
    pub fn nominate(&self) -> Option<Vector> {
        if !self.slot.delivers() {
            return None;
        }
        if self.has_interrupt_enables() {
            return self.nominate_enabled();
        }
        let page = self.slot.page();
        let vector = page.irr().highest_above_classes_of(page.isr())?;
        (vector.class() > page.read(Register::Tpr) as u8 & 0xF0).then_some(vector)
    }

    #[cold]
    fn nominate_enabled(&self) -> Option<Vector> {
        let vector = self.highest_request()?;
        (vector.class() > self.processor_priority() & 0xF0).then_some(vector)
    }

    /// AMD's IER counts.
    #[inline]
    fn has_interrupt_enables(&self) -> bool {
        self.slot.profile().extended_space()
            && self.slot.page().read(Register::ExtendedControl) & 1 != 0
    }

    /// The highest vector in IRR whatever PPR says; on AMD without those that IER leaves out.
    #[inline]
    #[must_use]
    pub fn highest_request(&self) -> Option<Vector> {
        let page = self.slot.page();
        if self.has_interrupt_enables() {
            let ier = VectorSet::new(page, 0x480);
            return page.irr().highest_of(|index, word| word & ier.bank(index));
        }
        page.irr().highest()
    }

    /// The processor takes `vector`: IRR to ISR, PPR follows. `false` if it was no longer in IRR;
    /// nothing changes then.
    #[inline]
    pub fn commit(&mut self, vector: Vector) -> bool {
        let page = self.slot.page();
        if !page.irr().remove(vector) {
            return false;
        }
        page.isr().insert_owned(vector);
        // PPR takes a higher class and keeps what is as high.
        if vector.class() > page.read(Register::Ppr) as u8 & 0xF0 {
            page.write(Register::Ppr, u32::from(vector.class()));
        }
        true
    }

    /// An interrupt-acknowledge cycle: what [`nominate`](Self::nominate) names is committed; if
    /// nothing is deliverable any more the answer is the spurious vector, and ISR does not change
    /// (SDM Vol. 3A 10.9).
    pub fn acknowledge(&mut self) -> u8 {
        match self.nominate() {
            Some(vector) if self.commit(vector) => vector.get(),
            _ => self.slot.page().svr().spurious_vector(),
        }
    }

    /// When the timer next expires, in guest TSC ticks. May change with every write to a timer
    /// register and with [`prepare`](Self::prepare).
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.timer.idle() { None } else { self.armed_deadline() }
    }

    #[inline(never)]
    fn armed_deadline(&self) -> Option<u64> {
        self.timer.next_expiry(self.slot.lvt(LvtEntry::Timer).timer_mode())
    }

    /// Whether the 8259's INTR reaches the processor: LINT0 is unmasked ExtINT, or there is no
    /// APIC and the pin is INTR itself (SDM Vol. 3A 10.4.3). A software-disabled APIC masks its
    /// entries and passes nothing.
    #[must_use]
    pub fn passes_external_interrupts(&self) -> bool {
        if !self.slot.present() {
            return true;
        }
        let lint0 = self.slot.lvt(LvtEntry::Lint0);
        !lint0.masked() && lint0.delivery() == LvtDelivery::ExtInt
    }

    /// Whether LINT0 asks for an external interrupt now.
    #[must_use]
    pub fn external_interrupt_pending(&self) -> bool {
        self.slot.latches.pin_level(Pin::Lint0) && self.passes_external_interrupts()
    }

    /// Says whether the guest may store to the registers of its page with nobody told; the backends say
    /// it with [`SvrWrites`](crate::SvrWrites). The VM's [`Directory`](crate::Directory) then does not
    /// count on what it knows of this APIC, and PPR is worked out whenever it is read.
    pub fn set_unseen_writes(&mut self, unseen: bool) {
        self.unseen_writes = unseen;
        self.list();
        self.trust_ppr();
    }

    /// Says whether the processor changes TPR in the page and leaves PPR, as a TPR shadow without
    /// virtual-interrupt delivery does (SDM Vol. 3C 29.1.2, 29.1.3); the backends say it. PPR is then
    /// worked out whenever it is read.
    pub fn set_unseen_tpr(&mut self, unseen: bool) {
        self.unseen_tpr = unseen;
        self.trust_ppr();
    }

    /// PPR's word is read as it stands if whoever changes TPR or ISR changes it too.
    fn trust_ppr(&mut self) {
        self.update_ppr();
        self.plain = Plain::new(!self.unseen_writes && !self.unseen_tpr);
    }

    /// Has the VM's directory follow the page.
    #[inline]
    pub(crate) fn list(&self) {
        self.slot.list(self.unseen_writes);
    }

    /// Lets time pass and delivers the timer's interrupt if it fired.
    #[inline]
    pub(crate) fn pass_time(&mut self, now: u64) {
        if self.timer.due(now) {
            self.advance_timer(now);
        }
    }

    #[cold]
    #[inline(never)]
    fn advance_timer(&mut self, now: u64) {
        if self.timer.advance(now, self.timer_settings()) {
            // The owner is here and will look: nobody has to be told.
            let _ = self.slot.local_event(LvtEntry::Timer);
        }
    }

    pub(crate) fn timer_settings(&self) -> Settings {
        let page = self.slot.page();
        let profile: &Profile = self.slot.profile();
        Settings {
            mode: self.slot.lvt(LvtEntry::Timer).timer_mode(),
            initial_count: page.read(Register::InitialCount),
            shift: divide_shift(page.read(Register::DivideConfiguration)),
            clock: profile.timer_clock(),
        }
    }

    /// Delivers what the LINT pins ask for.
    fn look_at_pins(&self) {
        for (pin, entry) in PINS {
            let rose = self.slot.latches.take_pin_edge(pin);
            if !self.slot.present() {
                // Without an APIC the pins are INTR, a level that the hypervisor asks for by
                // `external_interrupt_pending`, and NMI.
                if rose && pin == Pin::Lint1 {
                    self.slot.latches.latch_nmi();
                }
                continue;
            }
            let lvt = self.slot.lvt(entry);
            // LINT1 knows no level; only fixed interrupts may have it (SDM Vol. 3A 10.5.1).
            let by_level = pin == Pin::Lint0 && lvt.trigger() == Trigger::Level;
            match lvt.delivery() {
                _ if lvt.masked() => {}
                LvtDelivery::Fixed if by_level => self.offer_level(pin, entry),
                LvtDelivery::Init if rose => {
                    self.slot.latches.latch_init();
                }
                LvtDelivery::Fixed | LvtDelivery::Smi | LvtDelivery::Nmi if rose => {
                    let _ = self.slot.local_event(entry);
                }
                _ => {}
            }
        }
    }

    /// Delivers a level-triggered pin, unless its last interrupt still waits for its EOI.
    fn offer_level(&self, pin: Pin, entry: LvtEntry) {
        let latches = &self.slot.latches;
        if !latches.pin_level(pin) || latches.remote_irr(pin) {
            return;
        }
        let receipt = self.slot.request(self.slot.lvt(entry).vector(), Trigger::Level);
        if receipt.outcome == Outcome::Accepted {
            latches.set_remote_irr(pin, true);
            self.slot.lvt_word(entry).fetch_or(Lvt::REMOTE_IRR, Ordering::Relaxed);
        }
    }
}

pub(crate) const PINS: [(Pin, LvtEntry); 2] =
    [(Pin::Lint0, LvtEntry::Lint0), (Pin::Lint1, LvtEntry::Lint1)];

impl<I: Inbox> core::fmt::Debug for LocalApic<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LocalApic").field("slot", self.slot).field("timer", &self.timer).finish()
    }
}

#[cfg(test)]
mod tests;
