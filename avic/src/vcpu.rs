//! A vCPU's local APIC under AVIC, in the hands of the CPU that runs it.

use core::convert::Infallible;

use vlapic_core::{
    Backend, Configure, Entry, EntryInput, ExitOutcome, LocalApic, Mode, Register, Slot, SvrWrites,
};

use crate::backing::{Backing, Whereabouts};
use crate::capability::Capabilities;
use crate::exit::Exit;
use crate::face::Face;
use crate::host::{Host, Trust};
use crate::inhibit::{Inhibit, Inhibits};
use crate::msr_permissions::MsrPermissions;
use crate::negotiate::{Feature, Features, Grant, Wanted, negotiate};
use crate::physical_table::OwnedEntry;
use crate::routing::{Addressing, Survey};
use crate::shared::{Revision, Shared};
use crate::vmcb::{Field, Fields, InterruptControl, Vmcb};
use crate::window::Window;

/// A vCPU's local APIC and how its VMCB is programmed.
///
/// In the hypervisor's loop: [`before_entry`](Self::before_entry), VMRUN,
/// [`after_exit`](Self::after_exit), carry the effect out, again. Guest accesses that the
/// hypervisor emulates (MSR exits, decoded memory accesses, MOV to CR8) go to
/// [`apic_mut`](Self::apic_mut).
#[derive(Debug)]
pub struct Vcpu<'s> {
    pub(crate) apic: LocalApic<'s, Backing>,
    pub(crate) shared: &'s Shared<'s>,
    pub(crate) index: usize,
    /// This vCPU's entry of the physical table.
    pub(crate) entry: OwnedEntry<'s>,
    pub(crate) features: Features,
    pub(crate) trust: Trust,
    pub(crate) resources: Option<Resources<'s>>,
    pub(crate) svr_writes: SvrWrites,
    pub(crate) external_interrupt_window: bool,
    /// What the logical table was last told of this vCPU.
    pub(crate) addressing: Addressing,
    /// At which revision the pages were last looked at, and what they said.
    pub(crate) seen: Revision,
    pub(crate) survey: Survey,
    /// The other vCPUs have to be kicked before this one enters.
    pub(crate) peers_due: bool,
    /// This vCPU has an objection against mapping the window.
    pub(crate) objects: bool,
    /// TLB_CONTROL asks for a flush that no entry has done yet.
    pub(crate) flush_armed: bool,
}

/// What the hypervisor has for one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Resources<'s> {
    /// The vCPU's MSR permission map. Its address is the hypervisor's to put into the VMCB, and MSR
    /// accesses are to be intercepted by it.
    pub msr_permissions: &'s MsrPermissions,
    /// The register window in the nested page tables that the vCPU uses.
    pub window: &'s Window,
    /// No other vCPU of the VM runs with this vCPU's ASID. Otherwise the translations of the ASID
    /// are flushed whenever the vCPU comes to a CPU in xAPIC mode, because another may have left
    /// its own of the register window there (APM Vol. 2 15.29.4.3).
    pub private_asid: bool,
    /// What the host is like.
    pub host: Host,
}

impl<'s> Vcpu<'s> {
    /// Takes ownership of slot `index` of the VM, resets its APIC, and starts with no hardware
    /// help: every access exits and interrupts are injected. `bootstrap` makes the vCPU the BSP.
    ///
    /// `None` if there is no such slot.
    #[must_use]
    pub fn new(shared: &'s Shared<'s>, index: usize, bootstrap: bool) -> Option<Self> {
        let slot = shared.vm().slot(index)?;
        Some(Self {
            apic: LocalApic::new(slot, bootstrap),
            shared,
            index,
            entry: shared.physical().owned(slot.x2apic_id()),
            features: Features::NONE,
            trust: Trust::NOTHING,
            resources: None,
            svr_writes: SvrWrites::Exit,
            external_interrupt_window: false,
            addressing: Addressing::NONE,
            seen: Revision::NONE,
            survey: Survey::NOBODY,
            peers_due: false,
            objects: false,
            flush_armed: false,
        })
    }

    /// The architectural APIC.
    #[inline]
    #[must_use]
    pub const fn apic(&self) -> &LocalApic<'s, Backing> {
        &self.apic
    }

    /// The architectural APIC, for emulated accesses and events.
    #[inline]
    #[must_use]
    pub const fn apic_mut(&mut self) -> &mut LocalApic<'s, Backing> {
        &mut self.apic
    }

    /// What was granted.
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
        self.set_valid();
    }

    /// Whether the hypervisor wants an exit (#VMEXIT 64) as soon as the guest could take an
    /// interrupt that is not the APIC's (ExtINT). AVIC has no such window, so the vCPU is emulated
    /// for as long.
    pub const fn set_external_interrupt_window(&mut self, wanted: bool) {
        if self.external_interrupt_window != wanted {
            self.external_interrupt_window = wanted;
            self.seen = self.seen.unsettled();
        }
    }

    /// Negotiates `wanted` and prepares the VMCB, whose other fields are set already. Says what was
    /// refused and why.
    ///
    /// From here on these are the driver's: word 060 but for V_GIF and VGIF enable, the intercepts
    /// of V_INTR and of CR8 writes, 098, 0E0, 0F0 and 0F8, the x2APIC range of the MSR permission
    /// map. TLB_CONTROL it raises and takes back. AVIC itself is turned on by
    /// [`before_entry`](Self::before_entry), when and for as long as nothing is against it.
    ///
    /// May be called again, for another level of help, whenever the vCPU is outside guest mode: the
    /// page carries over unchanged.
    pub fn configure<V: Vmcb + ?Sized>(
        &mut self,
        vmcb: &mut V,
        capabilities: &Capabilities,
        wanted: Wanted,
        resources: Resources<'s>,
    ) -> Grant {
        let grant = negotiate(wanted, capabilities, &resources.host);
        self.withdraw_objection();
        self.seen = self.seen.unsettled();
        self.features = grant.features();
        self.trust = resources.host.trust;
        self.resources = Some(resources);
        let control = vmcb
            .interrupt_control()
            .set(InterruptControl::V_INTR_MASKING, true)
            .set(InterruptControl::V_NMI_ENABLE, self.features.contains(Feature::VirtualNmi));
        vmcb.write(Field::InterruptControl, control.bits());
        self.program(vmcb, Face::Emulated);
        grant
    }

    /// The page or IA32_APIC_BASE was replaced from outside (a restored state): has the tables follow.
    /// Call it before another vCPU of the VM runs; before this one's own entries it is not needed.
    pub fn state_replaced(&mut self) {
        self.look_at_addressing();
    }

    /// Pends an NMI in the VMCB, to be delivered when the guest can take it. `false`: virtual NMIs
    /// were not granted; inject it.
    #[must_use]
    pub fn pend_nmi<V: Vmcb + ?Sized>(&self, vmcb: &mut V) -> bool {
        let granted = self.features.contains(Feature::VirtualNmi);
        if granted {
            let control = vmcb.interrupt_control().set(InterruptControl::V_NMI, true);
            vmcb.write(Field::InterruptControl, control.bits());
        }
        granted
    }

    /// Why the vCPU is, or will be at its next entry, emulated, as far as it is not for lack of a
    /// grant.
    #[must_use]
    pub fn inhibits(&self) -> Inhibits {
        let slot = self.slot();
        let mode = slot.mode();
        let x2apic = mode == Mode::X2Apic;
        let lacks_x2avic = !self.features.contains(Feature::X2Avic);
        let face = if x2apic { Face::X2Avic } else { Face::XAvic };
        let highest = self.shared.highest_id();
        let has_255 = || self.shared.vm().index_of(0xFF).is_some();
        let page = slot.page();
        let vcpu = slot.inbox().inhibits();
        self.shared
            .inhibits()
            .union(vcpu)
            .with_if(Inhibit::InterruptWindow, self.external_interrupt_window)
            .with_if(Inhibit::Absent, mode == Mode::Disabled)
            .with_if(Inhibit::BaseMoved, slot.base().address() != DEFAULT_BASE)
            .with_if(Inhibit::X2ApicUnsupported, x2apic && lacks_x2avic)
            .with_if(Inhibit::IdTooLarge, highest > u32::from(self.max_index(face)))
            .with_if(Inhibit::Id255, x2apic && !self.trust.entry_255 && has_255())
            .with_if(Inhibit::IdModified, self.survey.renamed)
            .with_if(Inhibit::MixedModes, x2apic && self.survey.xapic)
            .with_if(
                Inhibit::LogicalModel,
                self.survey.model.is_some_and(|model| {
                    mode == Mode::XApic && page.read(Register::Dfr) >> 28 != u32::from(model)
                }),
            )
            .with_if(
                Inhibit::InterruptEnableRegisters,
                slot.profile().extended_space() && page.read(Register::ExtendedControl) & 1 != 0,
            )
            .with_if(Inhibit::LogicalIds, !self.survey.logical_ids_fit)
    }

    /// AVIC_PHYSICAL_MAX_INDEX for `face`: what the mode allows and the table has room for.
    pub(crate) fn max_index(&self, face: Face) -> u16 {
        let limit = match face {
            Face::Emulated => 0,
            Face::XAvic => Capabilities::HIGHEST_XAVIC_ID,
            Face::X2Avic if self.features.contains(Feature::ExtendedIds) => 0xFFF,
            Face::X2Avic => 0x1FF,
        };
        limit.min(self.shared.physical().highest_index())
    }

    fn withdraw_objection(&mut self) {
        if let Some(resources) = self.resources
            && self.objects
        {
            resources.window.consent();
            self.objects = false;
        }
    }

    pub(crate) const fn slot(&self) -> &'s Slot<'s, Backing> {
        self.apic.slot()
    }
}

/// The vCPU is gone: nothing is told, nobody finds it running, the window may be mapped.
impl Drop for Vcpu<'_> {
    fn drop(&mut self) {
        self.depart(Whereabouts::Preempted);
        self.withdraw_objection();
    }
}

/// Where AVIC's fields have the register window.
pub(crate) const DEFAULT_BASE: u64 = vlapic_core::ApicBase::DEFAULT_ADDRESS;

impl<'s, V: Vmcb + ?Sized> Backend<'s, V> for Vcpu<'s> {
    type Inbox = Backing;
    type Exit = Exit;
    type Error = Infallible;

    fn apic(&self) -> &LocalApic<'s, Backing> {
        self.apic()
    }

    fn apic_mut(&mut self) -> &mut LocalApic<'s, Backing> {
        self.apic_mut()
    }

    fn before_entry(&mut self, vmcb: &mut V, input: EntryInput) -> Result<Entry, Infallible> {
        self.before_entry(vmcb, input)
    }

    fn after_exit(
        &mut self,
        vmcb: &mut V,
        exit: &Exit,
        now: u64,
    ) -> Result<ExitOutcome, Infallible> {
        Ok(self.after_exit(vmcb, *exit, now))
    }

    fn block(&mut self, input: EntryInput) -> bool {
        self.block(input)
    }

    fn preempt(&mut self) {
        self.preempt();
    }
}

impl<'s, V: Vmcb + ?Sized> Configure<'s, V> for Vcpu<'s> {
    type Feature = Feature;
    type Capabilities = Capabilities;
    type Resources = Resources<'s>;
    type ConfigureError = Infallible;

    fn configure(
        &mut self,
        vmcb: &mut V,
        capabilities: &Capabilities,
        wanted: Wanted,
        resources: Resources<'s>,
    ) -> Result<Grant, Infallible> {
        Ok(self.configure(vmcb, capabilities, wanted, resources))
    }

    fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.set_svr_writes(svr_writes);
    }
}
