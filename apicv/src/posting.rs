//! Where a vCPU's accepted vectors wait on Intel: descriptor, and staging for level-triggered
//! ones.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use vlapic_core::{ApicPage, Inbox, Notify, Trigger, Vector};

use crate::descriptor::{Control, Post, PostedDescriptor};

/// The physical vectors that tell a vCPU of posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotificationVectors {
    /// NV of a vCPU that runs: its arrival in guest mode starts posted-interrupt processing.
    pub running: u8,
    /// NV of a vCPU that sleeps: the hypervisor's handler for it wakes the vCPUs whose ON is set.
    pub wakeup: u8,
}

/// How the host's own APICs are addressed, and so how NDST is filled (SDM Vol. 3C 29.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMode {
    /// 8-bit IDs, in NDST bits 15:8.
    XApic,
    /// 32-bit IDs.
    X2Apic,
}

/// The inbox of a vCPU under APICv.
///
/// A vector goes into PIR, whether the processor or the driver's own entry work moves it on. One
/// exception: a level-triggered vector must not reach a guest whose EOI of it would not exit, and
/// only the owner can load the EOI-exit bitmap. So it is staged, and the vCPU made to go through
/// its entry work, unless the loaded bitmap has the vector already.
///
/// Whether the APIC accepts is asked before a vector comes here. Hardware that posts by itself,
/// VT-d and IPI virtualization, does not ask, nor does the processor that takes PIR in. So what
/// hardware posts to a software-disabled APIC goes into IRR, by either way, and nothing is dropped;
/// what it posts to an APIC that is not there (IA32_APIC_BASE.EN clear) is dropped. Such posts also
/// leave TMR as it is, so the EOI of a vector that was level-triggered before is broadcast.
#[derive(Debug)]
pub struct Posting<'d> {
    descriptor: &'d PostedDescriptor,
    vectors: NotificationVectors,
    host: HostMode,
    /// Level-triggered vectors that wait for the EOI-exit bitmap.
    staged: VectorWords,
    /// Not zero if there may be one: set after the vector, cleared before the look.
    any_staged: AtomicU64,
    /// Not zero if the EOI-exit bitmap may have to change: a route has, or TMR for a vector that no
    /// poster found loaded, or an EOI exited for nothing. Set after that, cleared before the look.
    eoi_exits_due: AtomicU64,
    /// Vectors whose EOI exits with the bitmap as last loaded; all, if no EOI goes unseen.
    pub(crate) eoi_exits: VectorWords,
    /// Vectors that a level-triggered source may send to this vCPU, as the hypervisor said.
    pub(crate) level_routes: VectorWords,
}

/// 256 bits, one a vector.
#[derive(Debug)]
pub(crate) struct VectorWords([AtomicU64; 4]);

impl VectorWords {
    const fn new(fill: u64) -> Self {
        Self([const { AtomicU64::new(0) }; 4]).filled(fill)
    }

    const fn filled(self, fill: u64) -> Self {
        if fill == 0 {
            return self;
        }
        Self([
            AtomicU64::new(fill),
            AtomicU64::new(fill),
            AtomicU64::new(fill),
            AtomicU64::new(fill),
        ])
    }

    fn contains(&self, vector: Vector) -> bool {
        self.word(usize::from(vector.get() >> 6)) & 1 << (vector.get() & 63) != 0
    }

    fn insert(&self, vector: Vector) {
        self.0[usize::from(vector.get() >> 6)].fetch_or(1 << (vector.get() & 63), Ordering::SeqCst);
    }

    /// Whether it was there.
    fn remove(&self, vector: Vector) -> bool {
        let bit = 1 << (vector.get() & 63);
        self.0[usize::from(vector.get() >> 6)].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Word `index & 3`.
    #[inline]
    pub(crate) fn word(&self, index: usize) -> u64 {
        self.0[index & 3].load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_word(&self, index: usize, bits: u64) {
        self.0[index & 3].store(bits, Ordering::Release);
    }

    #[inline]
    fn take_word(&self, index: usize) -> u64 {
        if self.word(index) == 0 { 0 } else { self.0[index & 3].swap(0, Ordering::SeqCst) }
    }
}

impl<'d> Posting<'d> {
    /// The inbox over `descriptor`, for a vCPU that does not run yet: SN set, NV as for running. The
    /// two vectors must differ.
    #[must_use]
    pub fn new(
        descriptor: &'d PostedDescriptor,
        vectors: NotificationVectors,
        host: HostMode,
    ) -> Self {
        descriptor.set_target(true, vectors.running, 0);
        Self {
            descriptor,
            vectors,
            host,
            staged: VectorWords::new(0),
            any_staged: AtomicU64::new(0),
            eoi_exits_due: AtomicU64::new(1),
            eoi_exits: VectorWords::new(u64::MAX),
            level_routes: VectorWords::new(0),
        }
    }

    /// The descriptor, for VT-d entries and PID-pointer tables.
    #[must_use]
    pub const fn descriptor(&self) -> &'d PostedDescriptor {
        self.descriptor
    }

    /// The vectors given at construction.
    #[must_use]
    pub const fn vectors(&self) -> NotificationVectors {
        self.vectors
    }

    /// Says whether a level-triggered source (an I/O APIC pin) may send `vector` to this vCPU, so
    /// that its EOI-exit bit is loaded ahead of time; any CPU may call.
    ///
    /// Not needed for correctness: a level-triggered vector without its bit is staged until the
    /// bit is loaded. With it, such a vector is posted without making the vCPU exit.
    pub fn set_level_route(&self, vector: Vector, routed: bool) {
        if routed {
            self.level_routes.insert(vector);
        } else {
            self.level_routes.remove(vector);
        }
        self.review_eoi_exits();
    }

    /// Has the next entry look at all of the EOI-exit bitmap.
    pub(crate) fn review_eoi_exits(&self) {
        self.eoi_exits_due.store(1, Ordering::SeqCst);
    }

    /// Whether the next entry is to look at all of the EOI-exit bitmap: one load.
    #[inline]
    pub(crate) fn eoi_exits_due(&self) -> bool {
        self.eoi_exits_due.load(Ordering::Acquire) != 0
    }

    /// Takes back [`review_eoi_exits`](Self::review_eoi_exits), before the look.
    pub(crate) fn eoi_exits_reviewed(&self) {
        self.eoi_exits_due.swap(0, Ordering::SeqCst);
    }

    const fn runs_unaided(&self, control: Control) -> bool {
        control.sn() && control.nv() == self.vectors.wakeup
    }

    pub(crate) const fn ndst(&self, apic_id: u32) -> u32 {
        match self.host {
            HostMode::XApic => (apic_id & 0xFF) << 8,
            HostMode::X2Apic => apic_id,
        }
    }

    const fn apic_id(&self, ndst: u32) -> u32 {
        match self.host {
            HostMode::XApic => ndst >> 8 & 0xFF,
            HostMode::X2Apic => ndst,
        }
    }

    /// Moves everything posted into `page`, whatever ON says.
    ///
    /// Out of line, so that a caller with nothing posted stays small.
    #[inline(never)]
    pub(crate) fn collect_all(&self, page: &ApicPage) {
        self.descriptor.drain(|index, bits| insert_words(page, index, bits));
        if self.any_staged.load(Ordering::Acquire) != 0 {
            self.take_staged(page);
        }
    }

    #[cold]
    #[inline(never)]
    fn take_staged(&self, page: &ApicPage) {
        self.any_staged.swap(0, Ordering::SeqCst);
        self.review_eoi_exits();
        for index in 0..4 {
            insert_words(page, index, self.staged.take_word(index));
        }
    }
}

/// Adds vectors `64 * index` on to IRR.
fn insert_words(page: &ApicPage, index: usize, bits: u64) {
    let irr = page.irr();
    irr.insert_bank(2 * index, bits as u32);
    irr.insert_bank(2 * index + 1, (bits >> 32) as u32);
}

impl Inbox for Posting<'_> {
    /// For a level-triggered vector a fence separates the store to TMR, by the caller, from the look
    /// at the loaded EOI-exit bitmap; it pairs with the one in `eoi_exit::load`.
    #[inline]
    fn post(&self, _: &ApicPage, vector: Vector, trigger: Trigger) -> Notify {
        if trigger == Trigger::Level {
            fence(Ordering::SeqCst);
            if !self.eoi_exits.contains(vector) {
                self.staged.insert(vector);
                self.any_staged.store(1, Ordering::SeqCst);
                return Notify::Kick;
            }
        }
        match self.descriptor.post(vector) {
            Post::Coalesced => Notify::None,
            // It runs, and no hardware looks at PIR: only an exit makes the owner look.
            Post::Notify(control) if self.runs_unaided(control) => Notify::Kick,
            // Preempted, so about to run: its entry work finds the post.
            Post::Notify(control) if control.sn() => Notify::None,
            Post::Notify(control) if control.nv() == self.vectors.wakeup => Notify::Wake,
            Post::Notify(control) => Notify::Interrupt {
                vector: control.nv(),
                destination: self.apic_id(control.ndst()),
            },
        }
    }

    #[inline]
    fn attention(&self) -> Notify {
        Notify::Kick
    }

    /// IRR belongs to the processor while the vCPU runs: what has got there stays.
    fn retract(&self, _: &ApicPage, vector: Vector) -> bool {
        let staged = self.staged.remove(vector);
        self.descriptor.retract(vector) || staged
    }

    /// While SN is set ON says nothing: VT-d posts without it.
    #[inline]
    fn collect(&self, page: &ApicPage) {
        let posted = self.descriptor.control().on_or_sn();
        if posted | self.any_staged.load(Ordering::Acquire) != 0 {
            self.collect_all(page);
        }
    }

    fn drain(&self, page: &ApicPage) {
        self.collect_all(page);
    }

    /// TMR is emptied with it, or filled from elsewhere, so the EOI-exit bitmap has to follow.
    fn discard(&self) {
        self.review_eoi_exits();
        self.descriptor.clear();
        self.any_staged.swap(0, Ordering::SeqCst);
        for word in &self.staged.0 {
            word.swap(0, Ordering::SeqCst);
        }
    }
}
