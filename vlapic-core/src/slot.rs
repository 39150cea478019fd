//! One vCPU's local APIC as every CPU may touch it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use static_assertions::const_assert;

use crate::access::stored_bits;
use crate::base::{ApicBase, Mode};
use crate::directory::Listed;
use crate::esr::Errors;
use crate::inbox::{Inbox, Notify};
use crate::latches::{Latches, Pin};
use crate::lvt::{Lvt, LvtDelivery};
use crate::message::{Delivery, Message};
use crate::page::ApicPage;
use crate::profile::Profile;
use crate::register::{LvtEntry, Register};
use crate::upcall::{RefusedUpcall, Upcall};
use crate::vector::{Trigger, Vector};

/// What any CPU may touch of one vCPU's local APIC: `&Slot` is all it takes to post.
///
/// The state is the page and IA32_APIC_BASE. Besides these there is only what they cannot hold:
/// latched INIT, SIPI, NMI, SMI and pin levels, errors not yet shown in ESR, and the upcall.
/// A VM is a slice of slots ([`Vm`](crate::Vm)); their storage is the hypervisor's.
pub struct Slot<'p, I> {
    page: &'p ApicPage,
    base: AtomicU64,
    profile: Profile,
    x2apic_id: u32,
    pub(crate) latches: Latches,
    pub(crate) pending_errors: AtomicU32,
    pub(crate) upcall: Upcall,
    pub(crate) refused_upcall: RefusedUpcall,
    inbox: I,
    pub(crate) listed: Listed<'p>,
}

/// What became of a message at its target, and how the target is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`notify` has to be carried out"]
pub struct Receipt {
    /// What became of it.
    pub outcome: Outcome,
    /// How the target is told. May be something even if the message was not accepted (an error
    /// interrupt).
    pub notify: Notify,
}

/// What became of a message at its target.
///
/// As wide as the processor copies it: a narrow store before a wide load would hold it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Outcome {
    /// Taken: it will be delivered.
    Accepted,
    /// The APIC does not accept it now (EN or SVR bit 8 clear, or a SIPI nobody waits for). A
    /// level-triggered source asks again when it may have changed.
    Refused,
    /// The vector is below 16: ESR bit 6.
    IllegalVector,
}

/// What became of a post that raced with INIT. It fits into a register: a [`Receipt`] that came back in
/// memory would keep all others there.
enum AfterInit {
    Kept,
    Retracted,
    PostedAgain(Notify),
}

const_assert!(size_of::<AfterInit>() <= 8);

impl Receipt {
    pub(crate) const fn new(outcome: Outcome, notify: Notify) -> Self {
        Self { outcome, notify }
    }

    pub(crate) const REFUSED: Self = Self::new(Outcome::Refused, Notify::None);
}

impl<'p, I: Inbox> Slot<'p, I> {
    /// The slot of the vCPU with x2APIC ID `x2apic_id` (its low 8 bits are the xAPIC ID), whose
    /// registers live in `page`. Page and inbox lose what they held: the APIC begins in the state that
    /// RESET leaves, as one that waits for its start-up IPI.
    ///
    /// From here on others may send to it, be there an owner ([`LocalApic`](crate::LocalApic)) yet
    /// or not: INIT, SIPI and NMI wait for the owner, vectors are refused as by any APIC that is
    /// software-disabled.
    #[must_use]
    pub fn new(page: &'p ApicPage, x2apic_id: u32, profile: Profile, inbox: I) -> Self {
        let slot = Self {
            page,
            base: AtomicU64::new(ApicBase::reset(false).bits()),
            profile,
            x2apic_id,
            latches: Latches::new(),
            pending_errors: AtomicU32::new(0),
            upcall: Upcall::new(),
            refused_upcall: RefusedUpcall::Owed,
            inbox,
            listed: Listed::nowhere(),
        };
        slot.clear();
        slot.write_id();
        slot
    }

    /// The slot with another policy for refused upcalls.
    #[must_use]
    pub fn with_refused_upcall(mut self, policy: RefusedUpcall) -> Self {
        self.refused_upcall = policy;
        self
    }

    /// The APIC page.
    #[inline]
    #[must_use]
    pub const fn page(&self) -> &'p ApicPage {
        self.page
    }

    /// The model of the APIC.
    #[inline]
    #[must_use]
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The x2APIC ID the vCPU was made with.
    #[inline]
    #[must_use]
    pub const fn x2apic_id(&self) -> u32 {
        self.x2apic_id
    }

    /// Where accepted vectors wait.
    #[inline]
    #[must_use]
    pub const fn inbox(&self) -> &I {
        &self.inbox
    }

    /// IA32_APIC_BASE.
    #[inline]
    #[must_use]
    pub fn base(&self) -> ApicBase {
        ApicBase::from_bits(self.base.load(Ordering::Relaxed))
    }

    pub(crate) fn set_base(&self, base: ApicBase) {
        debug_assert!(base.consistent());
        self.base.store(base.bits(), Ordering::Relaxed);
    }

    /// The mode, from IA32_APIC_BASE.
    #[inline]
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.base().mode()
    }

    /// The offset into the register window of a guest-physical `address`, in bytes; `None` if the
    /// APIC is not in xAPIC mode or the address is outside its window.
    #[inline]
    #[must_use]
    pub fn window_offset(&self, address: u64) -> Option<u16> {
        let base = self.base();
        let inside = base.mode() == Mode::XApic && address & !0xFFF == base.address();
        inside.then_some(address as u16 & 0xFFF)
    }

    /// *Present*: IA32_APIC_BASE.EN. Governs the CPUID bit, the register window, the x2APIC MSRs,
    /// IA32_TSC_DEADLINE and CR8.
    #[inline]
    #[must_use]
    pub fn present(&self) -> bool {
        self.base().present()
    }

    /// *Accepts*: IA32_APIC_BASE.EN and SVR bit 8, read now. Governs fixed and lowest-priority
    /// interrupts from anywhere. NMI, SMI, INIT and SIPI do not ask it.
    #[inline]
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.present() && self.page.svr().software_enabled()
    }

    /// *Delivers what it already holds*: IA32_APIC_BASE.EN alone. An interrupt accepted before
    /// the APIC was software-disabled stays in IRR and is still delivered.
    ///
    /// The manuals leave this open (SDM Vol. 3A 10.4.7.2: such interrupts are held and need
    /// masking or handling). Virtual-interrupt delivery does not look at SVR, so this is the
    /// answer that is the same with and without it.
    #[inline]
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.present()
    }

    /// Whether the vCPU has left the wait-for-SIPI state.
    #[inline]
    #[must_use]
    pub fn online(&self) -> bool {
        !self.latches.waiting()
    }

    /// Delivers a message that is addressed to this vCPU; any CPU may call.
    ///
    /// INIT, SIPI, NMI, SMI and ExtINT reach an APIC that is software-disabled. Of ExtINT the APM
    /// says so in Vol. 2 16.5 and the contrary in 16.3.1; it is treated as the other latches are.
    #[inline]
    pub fn receive(&self, delivery: Delivery) -> Receipt {
        match delivery {
            Delivery::Fixed { vector, trigger } | Delivery::LowestPriority { vector, trigger } => {
                self.request(vector, trigger)
            }
            latched => self.latch(latched),
        }
    }

    /// [`receive`](Self::receive) of what `message` delivers.
    #[inline(always)]
    pub(crate) fn receive_message(&self, message: Message) -> Receipt {
        if message.carries_vector() {
            self.request(message.vector(), message.trigger())
        } else {
            self.latch(message.delivery())
        }
    }

    /// Anything but a vector.
    #[inline(never)]
    fn latch(&self, delivery: Delivery) -> Receipt {
        let latched = match delivery {
            Delivery::Fixed { .. } | Delivery::LowestPriority { .. } => false,
            _ if !self.present() => false,
            Delivery::Smi => self.latches.latch_smi(),
            Delivery::Nmi => self.latches.latch_nmi(),
            Delivery::Init => self.latches.latch_init(),
            Delivery::Startup { page } => self.latches.latch_startup(page),
            Delivery::ExtInt => self.latches.latch_extint(),
        };
        if latched {
            Receipt::new(Outcome::Accepted, self.inbox.attention())
        } else {
            Receipt::REFUSED
        }
    }

    /// Requests a fixed interrupt; any CPU may call. An illegal vector is recorded in ESR even if
    /// the APIC is software-disabled.
    ///
    /// Acceptance is decided here, from the page: an APIC that does not accept changes nowhere,
    /// neither in IRR nor in what waits for IRR. TMR is set before the request becomes visible
    /// (SDM Vol. 3A 10.8.4).
    #[inline]
    pub fn request(&self, vector: u8, trigger: Trigger) -> Receipt {
        match self.request_if(vector, trigger, |_| true) {
            Some(receipt) => receipt,
            None => Receipt::REFUSED,
        }
    }

    /// [`request`](Self::request), if the APIC is `addressed` with the IA32_APIC_BASE that it has; else `None`.
    /// One look at it decides whether it is addressed and whether it accepts.
    #[inline(always)]
    pub(crate) fn request_if(
        &self,
        vector: u8,
        trigger: Trigger,
        addressed: impl FnOnce(ApicBase) -> bool,
    ) -> Option<Receipt> {
        let life = self.latches.life();
        let base = self.base();
        if !addressed(base) {
            return None;
        }
        let Some(vector) = Vector::new(vector) else {
            return Some(match self.record_illegal_vector(base) {
                Some(notify) => Receipt::new(Outcome::IllegalVector, notify),
                None => Receipt::REFUSED,
            });
        };
        Some(self.accept_in(life, base, vector, trigger))
    }

    #[cold]
    #[inline(never)]
    fn record_illegal_vector(&self, base: ApicBase) -> Option<Notify> {
        base.present().then(|| self.record_error(Errors::RECEIVE_ILLEGAL_VECTOR))
    }

    #[inline]
    fn accept(&self, vector: Vector, trigger: Trigger) -> Receipt {
        let life = self.latches.life();
        self.accept_in(life, self.base(), vector, trigger)
    }

    /// INIT and RESET disable the APIC, then begin a new life, then clear IRR and what waits for
    /// it, each ordered before the next. So if `life` is the same before the look at IA32_APIC_BASE
    /// and SVR and after the post, the post is either wiped by the clearing or belongs to this life.
    #[inline(always)]
    fn accept_in(&self, life: u32, base: ApicBase, vector: Vector, trigger: Trigger) -> Receipt {
        let page = self.page;
        if !base.present() || !page.svr().software_enabled() {
            return Receipt::REFUSED;
        }
        page.tmr().assign(vector, trigger == Trigger::Level);
        let notify = self.inbox.post(page, vector, trigger);
        if self.latches.life() == life {
            return Receipt::new(Outcome::Accepted, notify);
        }
        match self.after_init(vector, trigger) {
            AfterInit::Kept => Receipt::new(Outcome::Accepted, notify),
            AfterInit::Retracted => Receipt::new(Outcome::Refused, notify),
            AfterInit::PostedAgain(notify) => Receipt::new(Outcome::Accepted, notify),
        }
    }

    /// INIT came between the look at SVR and the post, so the bit may have landed in the new
    /// life's IRR. It stays there only if the APIC accepts again by now.
    #[cold]
    #[inline(never)]
    fn after_init(&self, vector: Vector, trigger: Trigger) -> AfterInit {
        // If it cannot be retracted, INIT has wiped it, or the guest, in its new life, has taken it.
        if self.accepts() || !self.inbox.retract(self.page, vector) {
            return AfterInit::Kept;
        }
        // The guest may have enabled its APIC, and somebody posted the same vector, between the
        // last look and the retraction; posting again then loses nothing.
        if self.accepts() {
            return AfterInit::PostedAgain(self.inbox.post(self.page, vector, trigger));
        }
        AfterInit::Retracted
    }

    /// Raises an event of the vCPU's own: thermal, performance counter, CMCI.
    ///
    /// A masked entry drops it. On Intel a delivered performance-counter event masks its own
    /// entry (SDM Vol. 3B 18.6.3). LINT pins have [`set_lint`](Self::set_lint), the timer its own
    /// clock.
    pub fn local_event(&self, entry: LvtEntry) -> Receipt {
        let mut receipt = self.raise(entry);
        match receipt.outcome {
            // An error's own illegal vector must not raise a further error.
            Outcome::IllegalVector if entry == LvtEntry::Error => {
                self.add_errors(Errors::RECEIVE_ILLEGAL_VECTOR);
            }
            Outcome::IllegalVector => {
                receipt.notify = self.record_error(Errors::RECEIVE_ILLEGAL_VECTOR);
            }
            Outcome::Accepted
                if entry == LvtEntry::Performance
                    && self.profile.vendor() == crate::profile::Vendor::Intel =>
            {
                let word = self.page.word(Register::Lvt(entry).offset());
                word.fetch_or(Lvt::MASK, Ordering::Relaxed);
            }
            _ => {}
        }
        receipt
    }

    /// Delivers what `entry` says; an illegal vector is left to be recorded.
    fn raise(&self, entry: LvtEntry) -> Receipt {
        let lvt = self.lvt(entry);
        if lvt.masked() || !self.present() {
            return Receipt::REFUSED;
        }
        match lvt.delivery() {
            LvtDelivery::Fixed => match Vector::new(lvt.vector()) {
                Some(vector) => self.accept(vector, Trigger::Edge),
                None => Receipt::new(Outcome::IllegalVector, Notify::None),
            },
            LvtDelivery::Smi => self.latch(Delivery::Smi),
            LvtDelivery::Nmi => self.latch(Delivery::Nmi),
            // Not supported by any entry that comes here (SDM Vol. 3A 10.5.1).
            LvtDelivery::Init | LvtDelivery::ExtInt | LvtDelivery::Reserved => Receipt::REFUSED,
        }
    }

    /// Adds `errors` to those that the next write to ESR will show, and raises the error LVT for
    /// those not pending yet (SDM Vol. 3A 10.5.3).
    #[inline(never)]
    pub fn record_error(&self, errors: Errors) -> Notify {
        if !self.add_errors(errors) {
            return Notify::None;
        }
        let receipt = self.raise(LvtEntry::Error);
        if receipt.outcome == Outcome::IllegalVector {
            self.add_errors(Errors::RECEIVE_ILLEGAL_VECTOR);
        }
        receipt.notify
    }

    /// What the entry `entry` says: of the page's word the bits that software can write, masked
    /// while the APIC is software-disabled whatever a silent store left there, and remote IRR from
    /// its latch. An entry that does not exist is masked.
    #[inline]
    #[must_use]
    pub fn lvt(&self, entry: LvtEntry) -> Lvt {
        let register = Register::Lvt(entry);
        if entry == LvtEntry::Cmci && !self.profile.cmci() {
            return Lvt::RESET;
        }
        let mut bits = self.page.read(register) & stored_bits(register, &self.profile);
        if !self.page.svr().software_enabled() {
            bits |= Lvt::MASK;
        }
        let remote_irr = match entry {
            LvtEntry::Lint0 => self.latches.remote_irr(Pin::Lint0),
            LvtEntry::Lint1 => self.latches.remote_irr(Pin::Lint1),
            _ => false,
        };
        Lvt::from_bits(if remote_irr { bits | Lvt::REMOTE_IRR } else { bits })
    }

    /// Whether a bit was added that was not pending.
    fn add_errors(&self, errors: Errors) -> bool {
        errors.bits() & !self.pending_errors.fetch_or(errors.bits(), Ordering::AcqRel) != 0
    }
}

impl<I: Inbox> core::fmt::Debug for Slot<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slot")
            .field("x2apic_id", &self.x2apic_id)
            .field("mode", &self.mode())
            .field("page", self.page)
            .finish_non_exhaustive()
    }
}
