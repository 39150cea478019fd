//! A vCPU's local APIC under APICv, in the hands of the CPU that runs it.

use vlapic_core::{
    ApicBase, Backend, Configure, Entry, EntryInput, ExitOutcome, LocalApic, Mode, Slot, SvrWrites,
};
use vlapic_hal::{Vmcs, VmcsError};

use crate::cached::Cached;
use crate::capability::Capabilities;
use crate::eoi_exit;
use crate::exit::Exit;
use crate::msr_bitmap::MsrBitmap;
use crate::negotiate::{Feature, Features, Grant, Wanted, negotiate};
use crate::place::Place;
use crate::posting::Posting;
use crate::program::{
    Addresses, ProgramError, Translations, check_all_modes, program, set_controls,
};

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
    /// The mode for which the VMCS's control words and the MSR bitmap were last set;
    /// [`UNKNOWN_MODE`] before, and after a failure half-way.
    pub(crate) programmed_for: ApicBase,
    /// What they are set to: the features that count in that mode.
    pub(crate) active: Features,
    /// What it takes to program them for another mode.
    means: Option<Means<'s>>,
    /// What the CPUs have cached of the register window.
    pub(crate) cached: Cached,
    pub(crate) place: Place,
}

/// The bits of no mode.
const UNKNOWN_MODE: ApicBase = ApicBase::from_bits(u64::MAX);

#[derive(Clone, Copy, Debug)]
struct Means<'s> {
    capabilities: Capabilities,
    bitmap: Option<&'s MsrBitmap>,
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
            programmed_for: UNKNOWN_MODE,
            active: Features::NONE,
            means: None,
            cached: Cached::new(),
            place: Place::UNKNOWN,
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
    pub fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.svr_writes = svr_writes;
        self.apic.set_unseen_writes(svr_writes != SvrWrites::Exit);
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
    /// the page carries over unchanged.
    ///
    /// xAPIC mode, x2APIC mode and a disabled APIC want different controls. Those of the APIC's mode
    /// are in the VMCS from here on, and [`before_entry`](Self::before_entry) has them follow it. A
    /// disabled APIC (EN clear) is left the TPR shadow alone: delivery and posting would go on
    /// without asking EN. The VMCS must not be given another's controls meanwhile.
    ///
    /// # Errors
    /// [`ProgramError`]: an address is missing or misplaced, and nothing was written; or a VMWRITE
    /// failed.
    pub fn configure(
        &mut self,
        vmcs: &mut impl Vmcs,
        capabilities: &Capabilities,
        wanted: Wanted,
        addresses: &Addresses<'s>,
    ) -> Result<Grant, ProgramError> {
        let grant = negotiate(wanted, capabilities);
        let features = grant.features();
        check_all_modes(vmcs, capabilities, features)?;
        let slot = self.apic.slot();
        let vector = slot.inbox().vectors().running;
        let programmed = program(vmcs, capabilities, features, slot.mode(), addresses, vector);
        if !matches!(programmed, Ok(_) | Err(ProgramError::Vmcs(_))) {
            return programmed.map(|_| grant);
        }
        self.programmed_for = UNKNOWN_MODE;
        self.features = features;
        let bitmap = addresses.msr_bitmap.map(|(bitmap, _)| bitmap);
        self.means = Some(Means { capabilities: *capabilities, bitmap });
        let active = self.active_features();
        // Half-way through a failure the words may have changed already.
        let translations = programmed.unwrap_or(Translations::Stale);
        self.cached.controls_set(translations, active.contains(Feature::ApicAccess));
        let _ = programmed?;
        if slot.mode() == Mode::Disabled {
            self.program_controls(vmcs, active)?;
        }
        self.start_eoi_exits(vmcs)?;
        if features.contains(Feature::VirtualInterruptDelivery) {
            // One that injection has left would keep the processor from delivering.
            self.set_interrupt_window(vmcs, false)?;
        }
        self.programmed(active);
        Ok(grant)
    }

    fn programmed(&mut self, active: Features) {
        self.active = active;
        self.programmed_for = self.apic.slot().base().mode_bits();
        self.place.forget_control();
        let shadow = active.contains(Feature::TprShadow);
        let delivery = active.contains(Feature::VirtualInterruptDelivery);
        self.apic.set_unseen_tpr(shadow && !delivery);
    }

    /// Has the control words and the MSR bitmap follow the APIC's mode. On an error the next call begins
    /// anew.
    #[cold]
    #[inline(never)]
    pub(crate) fn follow_mode(&mut self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let active = self.active_features();
        self.program_controls(vmcs, active)?;
        self.programmed(active);
        Ok(())
    }

    /// Programs the control words and the MSR bitmap for `active`, what counts of the features in the
    /// APIC's present mode.
    fn program_controls(
        &mut self,
        vmcs: &mut impl Vmcs,
        active: Features,
    ) -> Result<(), VmcsError> {
        let Some(Means { capabilities, bitmap }) = self.means else { return Ok(()) };
        self.programmed_for = UNKNOWN_MODE;
        let mode = self.apic.slot().mode();
        let set = set_controls(vmcs, &capabilities, active, mode, bitmap);
        // Half-way through a failure they may have changed already.
        let translations = set.unwrap_or(Translations::Stale);
        self.cached.controls_set(translations, active.contains(Feature::ApicAccess));
        let _ = set?;
        if active.contains(Feature::VirtualInterruptDelivery) {
            self.set_interrupt_window(vmcs, false)?;
        }
        Ok(())
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
    pub fn block(&mut self, input: EntryInput) -> bool {
        self.apic.slot().inbox().block(input.cpu);
        let prepared = self.apic.prepare(input.now);
        let interrupted = input.interruptible && self.apic.nominate().is_some();
        !prepared.event && !interrupted
    }

    /// The features that count in the APIC's present mode, and so what the control words are to be set
    /// to.
    pub(crate) fn active_features(&self) -> Features {
        match self.apic.slot().mode() {
            Mode::Disabled => Features::up_to(Feature::TprShadow).intersection(self.features),
            Mode::XApic => self.features.without(Feature::X2Apic),
            Mode::X2Apic => self.features.without(Feature::ApicAccess),
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
    fn before_entry(&mut self, vmcs: &mut V, input: EntryInput) -> Result<Entry, VmcsError> {
        self.before_entry(vmcs, input)
    }

    /// No APIC exit needs the VMCS beyond what `exit` says.
    #[inline]
    fn after_exit(&mut self, _: &mut V, exit: &Exit, now: u64) -> Result<ExitOutcome, VmcsError> {
        Ok(self.after_exit(*exit, now))
    }

    #[inline]
    fn block(&mut self, input: EntryInput) -> bool {
        self.block(input)
    }

    fn preempt(&mut self) {
        self.apic.slot().inbox().preempt();
    }
}

impl<'s, V: Vmcs> Configure<'s, V> for Vcpu<'s> {
    type Feature = Feature;
    type Capabilities = Capabilities;
    type Resources = Addresses<'s>;
    type ConfigureError = ProgramError;

    fn configure(
        &mut self,
        vmcs: &mut V,
        capabilities: &Capabilities,
        wanted: Wanted,
        addresses: Addresses<'s>,
    ) -> Result<Grant, ProgramError> {
        self.configure(vmcs, capabilities, wanted, &addresses)
    }

    fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.set_svr_writes(svr_writes);
    }
}

#[cfg(test)]
mod tests;
