//! A vCPU's local APIC under APICv, in the hands of the CPU that runs it.

use vlapic_core::{Backend, Entry, EntryInput, ExitOutcome, LocalApic, Mode, Slot, SvrWrites};
use vlapic_hal::{Vmcs, VmcsError};

use crate::capability::Capabilities;
use crate::eoi_exit;
use crate::exit::Exit;
use crate::msr_bitmap::MsrBitmap;
use crate::negotiate::{Feature, Features, Grant, Wanted, negotiate};
use crate::posting::Posting;
use crate::program::{Addresses, ProgramError, Translations, program, reprogram_for_mode};

/// A vCPU's local APIC and how its VMCS is programmed.
///
/// In the hypervisor's loop: [`before_entry`](Self::before_entry), enter,
/// [`after_exit`](Self::after_exit), carry the effect out, again. Guest accesses that the
/// hypervisor emulates (MSR exits, decoded memory accesses, CR8) go to
/// [`apic_mut`](Self::apic_mut).
#[derive(Debug)]
pub struct Vcpu<'s> {
    apic: LocalApic<'s, Posting<'s>>,
    features: Features,
    svr_writes: SvrWrites,
    external_interrupt_window: bool,
}

impl<'s> Vcpu<'s> {
    /// Takes ownership of `slot`, resets its APIC, and starts with no hardware help: every access
    /// exits and interrupts are injected. `bootstrap` makes the vCPU the BSP.
    #[must_use]
    pub fn new(slot: &'s Slot<'s, Posting<'s>>, bootstrap: bool) -> Self {
        Self {
            apic: LocalApic::new(slot, bootstrap),
            features: Features::NONE,
            svr_writes: SvrWrites::Exit,
            external_interrupt_window: false,
        }
    }

    /// The architectural APIC.
    #[inline]
    #[must_use]
    pub const fn apic(&self) -> &LocalApic<'s, Posting<'s>> {
        &self.apic
    }

    /// The architectural APIC, for emulated accesses and events.
    #[inline]
    #[must_use]
    pub const fn apic_mut(&mut self) -> &mut LocalApic<'s, Posting<'s>> {
        &mut self.apic
    }

    /// What the VMCS was last programmed for.
    #[inline]
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// How SVR writes come to notice; [`SvrWrites::Exit`] unless changed.
    #[inline]
    #[must_use]
    pub const fn svr_writes(&self) -> SvrWrites {
        self.svr_writes
    }

    /// Says how SVR writes come to notice. With anything that lets the guest store to its page
    /// unseen this must not stay at [`SvrWrites::Exit`].
    pub const fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.svr_writes = svr_writes;
    }

    /// Whether the hypervisor wants an interrupt-window exit for an interrupt of its own (ExtINT).
    ///
    /// Without virtual-interrupt delivery, which includes a disabled APIC, the driver owns the
    /// interrupt-window control and ORs this in. With it the control is the hypervisor's alone, and
    /// delivers nothing while set.
    pub const fn set_external_interrupt_window(&mut self, wanted: bool) {
        self.external_interrupt_window = wanted;
    }

    pub(crate) const fn external_interrupt_window(&self) -> bool {
        self.external_interrupt_window
    }

    /// Programs the VMCS for as much of `wanted` as `capabilities` allow, and says what was
    /// refused and why. The VMCS must be current, its other controls already set.
    ///
    /// May be called again, for another level of help, whenever the vCPU is outside guest mode:
    /// the page carries over unchanged. Translations of the register window that the processor
    /// may hold must be flushed afterwards (INVEPT, INVVPID).
    ///
    /// # Errors
    /// [`ProgramError`]: an address is missing or misplaced, and nothing was written; or a VMWRITE
    /// failed.
    pub fn configure(
        &mut self,
        vmcs: &mut impl Vmcs,
        capabilities: &Capabilities,
        wanted: Wanted,
        addresses: &Addresses<'_>,
    ) -> Result<Grant, ProgramError> {
        let grant = negotiate(wanted, capabilities);
        let features = grant.features();
        let mode = self.apic.slot().mode();
        let vector = self.apic.slot().inbox().vectors().running;
        let _ = program(vmcs, capabilities, features, mode, addresses, vector)?;
        self.features = features;
        if self.active_features() != features {
            let bitmap = addresses.msr_bitmap.map(|(bitmap, _)| bitmap);
            let _ = self.mode_changed(vmcs, capabilities, bitmap)?;
        }
        self.start_eoi_exits(vmcs)?;
        if features.contains(Feature::VirtualInterruptDelivery) {
            // One that injection has left would keep the processor from delivering.
            self.set_interrupt_window(vmcs, false)?;
        }
        Ok(grant)
    }

    /// Programs the VMCS and the MSR bitmap anew after
    /// [`Effect::BaseChanged`](vlapic_core::Effect::BaseChanged): xAPIC mode, x2APIC mode and a
    /// disabled APIC want different controls. RESET, which sets the mode too, needs this call as
    /// well. `bitmap` is the one given to [`configure`](Self::configure).
    ///
    /// While the APIC is disabled (EN clear) only the TPR shadow stays: delivery and posting would
    /// go on without asking EN.
    ///
    /// # Errors
    /// As [`configure`](Self::configure).
    pub fn mode_changed(
        &mut self,
        vmcs: &mut impl Vmcs,
        capabilities: &Capabilities,
        bitmap: Option<&MsrBitmap>,
    ) -> Result<Translations, ProgramError> {
        let mode = self.apic.slot().mode();
        reprogram_for_mode(vmcs, capabilities, self.active_features(), mode, bitmap)
    }

    /// Puts the vCPU to sleep on the wakeup list of the CPU `input.cpu`; the caller has put it on
    /// that list. `false` means that something is to be done first: take it off the list and go on
    /// running.
    ///
    /// For HLT, `input.interruptible` is RFLAGS.IF once HLT has been stepped over; with IF clear no
    /// interrupt ends the sleep, only another event.
    ///
    /// Whatever is posted after this call wakes the vCPU; whatever was posted before it is seen by
    /// it. Being woken does not mean that there is something to take (the vector may be below PPR):
    /// call it again, and sleep on if it says `true`. Ordering: NV is changed with a locked
    /// operation before PIR, IRR and latches are looked at.
    #[must_use]
    pub fn block(&mut self, input: EntryInput<'_>) -> bool {
        self.apic.slot().inbox().block(input.cpu);
        let prepared = self.apic.prepare(input.now, input.pending);
        let interrupted = input.interruptible && self.apic.nominate().is_some();
        !prepared.event && !interrupted
    }

    /// The features that count in the APIC's present mode.
    #[inline]
    pub(crate) fn active_features(&self) -> Features {
        match self.apic.slot().mode() {
            Mode::Disabled if self.features.contains(Feature::TprShadow) => {
                Features::NONE.with(Feature::TprShadow)
            }
            Mode::Disabled => Features::NONE,
            Mode::XApic | Mode::X2Apic => self.features,
        }
    }

    fn start_eoi_exits(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let posting = self.apic.slot().inbox();
        if self.features.contains(Feature::VirtualInterruptDelivery) {
            eoi_exit::start(vmcs, posting)
        } else {
            eoi_exit::stop(posting);
            Ok(())
        }
    }
}

impl<'s, V: Vmcs> Backend<'s, V> for Vcpu<'s> {
    type Inbox = Posting<'s>;
    type Exit = Exit;
    type Error = VmcsError;

    fn apic(&self) -> &LocalApic<'s, Posting<'s>> {
        &self.apic
    }

    fn apic_mut(&mut self) -> &mut LocalApic<'s, Posting<'s>> {
        &mut self.apic
    }

    #[inline]
    fn before_entry(&mut self, vmcs: &mut V, input: EntryInput<'_>) -> Result<Entry, VmcsError> {
        self.before_entry(vmcs, input)
    }

    /// No APIC exit needs the VMCS beyond what `exit` says.
    #[inline]
    fn after_exit(&mut self, _: &mut V, exit: &Exit, now: u64) -> Result<ExitOutcome, VmcsError> {
        Ok(self.after_exit(*exit, now))
    }

    #[inline]
    fn block(&mut self, input: EntryInput<'_>) -> bool {
        self.block(input)
    }

    fn preempt(&mut self) {
        self.apic.slot().inbox().preempt();
    }
}
