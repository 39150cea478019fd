//! What every way of running a vCPU has in common: plain emulation, APICv, AVIC.
//!
//! A hypervisor's loop is the same for all three: entry work, enter, exit, carry the effect out.
//! [`Backend`] is that loop's view of them. It is for static dispatch: the loop is generic, or
//! matches on an enum of its own.

use crate::effect::Effect;
use crate::inbox::Inbox;
use crate::local::{LocalApic, Prepared};
use crate::vector::Vector;

/// A vCPU's local APIC together with the way its processor helps, if at all.
///
/// `C` is what an entry is prepared in: a VMCS, a VMCB, or
/// [`Injection`](crate::Injection) for plain emulation. In the order of use:
///
/// 1. [`before_entry`](Self::before_entry), with this CPU's interrupts off from here to the entry;
/// 2. the entry, if [`Entry::next`] says so; else what it says instead, and again;
/// 3. [`after_exit`](Self::after_exit), and the effect it returns;
/// 4. [`block`](Self::block) where the guest halted, [`preempt`](Self::preempt) where the
///    scheduler takes the CPU away.
pub trait Backend<'s, C: ?Sized> {
    /// Where the vCPU's accepted vectors wait.
    type Inbox: Inbox + 's;
    /// What the hypervisor tells of an exit.
    type Exit;
    /// What can go wrong with `C`.
    type Error;

    /// The architectural APIC.
    fn apic(&self) -> &LocalApic<'s, Self::Inbox>;

    /// The architectural APIC, for emulated accesses and events.
    fn apic_mut(&mut self) -> &mut LocalApic<'s, Self::Inbox>;

    /// Makes APIC and `controls` ready for an entry. Call it last, with interrupts of this CPU off
    /// from here to the entry.
    ///
    /// # Errors
    /// An access to `controls` that fails: do not enter. The call may be repeated.
    fn before_entry(&mut self, controls: &mut C, input: EntryInput) -> Result<Entry, Self::Error>;

    /// Handles `exit` if it is about the APIC. `now` is the guest's TSC.
    ///
    /// # Errors
    /// An access to `controls` that fails.
    fn after_exit(
        &mut self,
        controls: &mut C,
        exit: &Self::Exit,
        now: u64,
    ) -> Result<ExitOutcome, Self::Error>;

    /// The guest halted: puts the vCPU to sleep on the wakeup list of the CPU `input.cpu`, on which
    /// the caller has put it. `false`: there is something to do, do not sleep.
    ///
    /// `input.interruptible` is RFLAGS.IF once HLT has been stepped over; with IF clear no
    /// interrupt ends the sleep. Whatever is posted after this call notifies; whatever was posted
    /// before it is seen by it. A vCPU that is woken is asked again.
    #[must_use]
    fn block(&mut self, input: EntryInput) -> bool;

    /// The scheduler takes the CPU away from a vCPU that wants to run on.
    fn preempt(&mut self);
}

/// What the hypervisor says of the entry it prepares.
#[derive(Clone, Copy, Debug)]
pub struct EntryInput {
    /// The guest's TSC.
    pub now: u64,
    /// The physical APIC ID of this CPU.
    pub cpu: u32,
    /// The guest can take an external interrupt at this entry: RFLAGS.IF is set and there is no
    /// interrupt shadow. `before_entry` only asks it where the processor does not look for itself.
    pub interruptible: bool,
    /// An event is to be injected at this entry already: the one that the last exit cut short (valid
    /// IDT-vectoring information; valid EXITINTINFO), or one of the hypervisor's own. One entry
    /// injects one event, so nothing else is injected and no other event is to be taken.
    pub injecting: bool,
}

/// What the hypervisor has to do for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Entry {
    /// Whether to enter, and if not, what to do first.
    pub next: Next,
    /// Make the vCPU exit by this time, in guest TSC ticks (VMX-preemption timer or a timer of
    /// the host): the APIC timer expires, an owed upcall wants a look at SVR, or an event waits for
    /// the one that is injected. A time that is not after [`EntryInput::now`] means at once, that is
    /// before the guest's first instruction but after the injection.
    pub exit_by: Option<u64>,
    /// An upcall is owed: have the guest's next SVR write exit.
    pub intercept_svr: bool,
    /// This CPU may hold translations of the guest's register window that have become wrong: flush
    /// those of the guest before entering (INVEPT). Said again until an entry has been made.
    pub flush: bool,
    /// This vector is injected as an external interrupt by this entry; its IRR bit has moved to
    /// ISR. If the entry exits before it is delivered, inject it again.
    pub injected: Option<Vector>,
}

/// What comes after [`Backend::before_entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// The entry.
    Enter,
    /// Do not enter: INIT, SIPI, NMI, SMI or ExtINT has come and nothing else is to be injected.
    /// Take one by [`LocalApic::take_event`], carry it out, and call `before_entry` again.
    TakeEvent,
    /// Do not enter: the vCPU waits for a start-up IPI. Let it sleep until it is kicked, then call
    /// `before_entry` again.
    AwaitStartup,
    /// Do not enter: the register window is mapped for hardware that is not to serve this vCPU now.
    /// Unmap it, flush it from the TLBs of every CPU, say so (`avic::Window::unmapped`), and call
    /// `before_entry` again.
    UnmapWindow,
    /// Do not enter: the other vCPUs' hardware cannot route what this one has become. Kick each of
    /// them ([`Notify::Kick`](crate::Notify::Kick)), so that it goes through its own entry work, and
    /// call `before_entry` again.
    KickOthers,
}

impl Entry {
    /// The entry that follows from what [`LocalApic::prepare`] found. `next` is what
    /// [`Prepared::next`] made of it.
    #[inline]
    pub fn new(
        prepared: Prepared,
        next: Next,
        injected: Option<Vector>,
        svr_writes: SvrWrites,
        now: u64,
    ) -> Self {
        let entry =
            Self { next, exit_by: prepared.deadline, intercept_svr: false, flush: false, injected };
        if prepared.event || prepared.upcall_owed {
            return entry.exiting_early(prepared, svr_writes, now);
        }
        entry
    }

    #[cold]
    fn exiting_early(self, prepared: Prepared, svr_writes: SvrWrites, now: u64) -> Self {
        let recheck = match svr_writes {
            SvrWrites::Silent { recheck } if prepared.upcall_owed => {
                Some(now.saturating_add(recheck))
            }
            _ => None,
        };
        let exit_by = match (prepared.deadline, recheck) {
            // What is injected goes first; the event makes the guest exit right after it.
            _ if prepared.event => Some(now),
            (Some(timer), Some(recheck)) => Some(timer.min(recheck)),
            (timer, recheck) => timer.or(recheck),
        };
        let intercept_svr = prepared.upcall_owed && svr_writes == SvrWrites::Interceptable;
        Self { exit_by, intercept_svr, ..self }
    }

    /// No entry: `next` comes first, and nothing has been looked at yet.
    pub const fn not_yet(next: Next) -> Self {
        Self { next, exit_by: None, intercept_svr: false, flush: false, injected: None }
    }
}

/// How a guest's write to SVR comes to the hypervisor's notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SvrWrites {
    /// It exits: emulated access, APIC-write exit, AVIC trap, or intercepted MSR.
    #[default]
    Exit,
    /// It does not, but can be made to while an upcall is owed.
    Interceptable,
    /// It does not: while an upcall is owed the vCPU exits every `recheck` guest TSC ticks.
    Silent {
        /// The longest time, in guest TSC ticks, that an owed upcall waits after the guest has
        /// enabled its APIC.
        recheck: u64,
    },
}

/// What a backend made of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum ExitOutcome {
    /// Not an APIC exit: the hypervisor's own.
    NotOurs,
    /// Handled. Carry the effect out and resume; RIP is already past the instruction.
    Done(Effect),
    /// The guest's instruction was not executed. Decode it, give the access to
    /// [`LocalApic::read_mmio`] or [`LocalApic::write_mmio`], and step over it.
    Decode(WindowAccess),
    /// The guest's RDMSR or WRMSR of `msr` was not executed. Give it to
    /// [`LocalApic::read_msr`] or [`LocalApic::write_msr`], and step over it, or inject #GP.
    Msr {
        /// The register's number.
        msr: u32,
        /// WRMSR, else RDMSR.
        write: bool,
    },
}

/// An access to the register window that the processor left to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAccess {
    /// Byte offset into the window. Undefined for [`AccessKind::Physical`] and
    /// [`AccessKind::PhysicalEventDelivery`].
    pub offset: u16,
    /// What the access was.
    pub kind: AccessKind,
}

/// What made an access to the register window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessKind {
    /// A data read by an instruction.
    Read,
    /// A data write by an instruction.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A linear access while an event was delivered.
    EventDelivery,
    /// A guest-physical access while an event was delivered.
    PhysicalEventDelivery,
    /// A guest-physical access of an instruction's fetch or execution.
    Physical,
    /// Any other, by the processor's number: accesses for monitoring and tracing.
    Other(u8),
}
