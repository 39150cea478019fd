//! One core: VMX root operation, the current VMCS, and the guest that runs on it.

use std::sync::Arc;

use vlapic_hal::{MsrError, ReadMsr, Vmcs, VmcsError, VmcsField};

use super::bus::PhysicalBus;
use super::capability::Capability;
use super::entry::{Entered, EntryFailure, enter};
use super::exit::{Outcome, VmExit};
use super::field;
use super::guest::{Guest, Window};
use super::interleave::{Interleaving, Point};
use super::knobs::Knobs;
use super::memory::Memory;
use super::physical::PhysicalApic;
use super::translation::Translations;
use super::vmcs::VmcsRegion;

/// A logical processor.
///
/// In VMX root operation it gives a driver access to the current VMCS (it implements [`Vmcs`]). After
/// [`vm_entry`](Core::vm_entry) it is in non-root operation and takes guest operations until one of them ends in
/// [`Outcome::Exit`]. A guest operation in root operation, or on a halted guest, is a mistake of the test and panics.
#[derive(Debug)]
pub struct Core<'m> {
    id: u32,
    /// The physical local APIC.
    pub physical: PhysicalApic,
    /// Where the guest's APIC window leads.
    pub window: Window,
    /// What tells the guest's translations from other guests': its EPT pointer and VPID.
    pub address_space: u64,
    memory: Arc<Memory<'m>>,
    bus: Arc<PhysicalBus>,
    capability: Capability,
    knobs: Knobs,
    vmcs: Option<VmcsRegion>,
    pub(super) guest: Option<Guest<'m>>,
    others: Interleaving<'m>,
    page_violations: Vec<u32>,
    exits: u64,
    pub(super) translations: Translations,
}

/// VMX root operation.
impl<'m> Core<'m> {
    /// A core with physical APIC ID `id`, in root operation, without a current VMCS.
    pub fn new(
        id: u32,
        memory: Arc<Memory<'m>>,
        bus: Arc<PhysicalBus>,
        capability: Capability,
        knobs: Knobs,
    ) -> Self {
        Core {
            id,
            physical: PhysicalApic::default(),
            window: Window::default(),
            address_space: 0,
            memory,
            bus,
            capability,
            knobs,
            vmcs: None,
            guest: None,
            others: Interleaving::default(),
            page_violations: Vec::new(),
            exits: 0,
            translations: Translations::default(),
        }
    }

    /// INVEPT: forgets where the guest's addresses lead.
    pub fn invept(&mut self) {
        assert!(self.guest.is_none(), "INVEPT belongs to root operation");
        self.translations.flush();
    }

    /// Without VPIDs each VM entry and VM exit forgets.
    pub(super) fn flush_at_transition(&mut self) {
        if !self.knobs.translations_survive_exits {
            self.translations.flush();
        }
    }

    /// The physical APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The features that the core reports.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Makes a VMCS current and returns the one that was.
    pub fn vmptrld(&mut self, vmcs: VmcsRegion) -> Option<VmcsRegion> {
        assert!(self.guest.is_none(), "VMPTRLD belongs to root operation");
        self.vmcs.replace(vmcs)
    }

    /// Takes the current VMCS away, to make it current on another core.
    pub fn vmclear(&mut self) -> Option<VmcsRegion> {
        assert!(self.guest.is_none(), "VMCLEAR belongs to root operation");
        self.vmcs.take()
    }

    /// The current VMCS as the model keeps it. While a guest runs its guest-state fields are those of the last exit.
    pub fn vmcs(&self) -> Option<&VmcsRegion> {
        self.vmcs.as_ref()
    }

    /// The current VMCS, for a test that sets a field which software could not write.
    pub fn vmcs_mut(&mut self) -> Option<&mut VmcsRegion> {
        self.vmcs.as_mut()
    }

    /// VMLAUNCH or VMRESUME.
    ///
    /// # Errors
    /// If no VMCS is current or its controls are inconsistent; the core stays in root operation.
    pub fn vm_entry(&mut self) -> Result<Entered, EntryFailure> {
        assert!(self.guest.is_none(), "VM entry belongs to root operation");
        let vmcs = self.vmcs.as_mut().ok_or(EntryFailure::NoCurrentVmcs)?;
        match enter(vmcs, &self.memory, &self.bus, self.knobs) {
            Ok((mut guest, entered)) => {
                guest.remember_page();
                guest.others = std::mem::take(&mut self.others);
                self.guest = Some(guest);
                if let Some(exit) = entered.exit {
                    self.leave(exit);
                }
                Ok(entered)
            }
            Err(failure) => {
                match failure {
                    EntryFailure::InvalidControls(_) => vmcs.set(field::INSTRUCTION_ERROR, 7),
                    _ => vmcs.set(field::EXIT_REASON, 1 << 31 | 33),
                }
                Err(failure)
            }
        }
    }

    /// The host takes the pending physical interrupt through its own IDT; it still has to end it at
    /// [`physical`](Core::physical).
    pub fn host_interrupt(&mut self) -> Option<u8> {
        assert!(self.guest.is_none(), "the host runs in root operation");
        self.physical.acknowledge()
    }

    /// Has `others` called inside the guest's micro-operations, wherever another CPU could act.
    ///
    /// It takes effect at the next VM entry. The function stands for the other CPUs: it may do to shared memory what
    /// they may do, for example post to this vCPU.
    pub fn interleave(&mut self, others: impl FnMut(Point) + Send + 'm) {
        assert!(self.guest.is_none(), "set before the guest runs");
        self.others = Interleaving::new(others);
    }

    /// Whether a guest runs.
    pub fn in_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// How many VM exits the core took.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// Page offsets that software changed while the processor used them, which the manual forbids: one entry for each
    /// change that was noticed.
    pub fn page_violations(&self) -> &[u32] {
        &self.page_violations
    }

    /// Lets the running guest make one step.
    pub(super) fn step(
        &mut self,
        op: impl FnOnce(&mut Guest<'m>, &mut PhysicalApic) -> Outcome,
    ) -> Outcome {
        let guest = self.guest.as_mut().expect("guest operations need a VM entry first");
        self.page_violations.extend(guest.fields_changed_by_software());
        let outcome = op(guest, &mut self.physical);
        guest.remember_page();
        if let Outcome::Exit(exit) = outcome {
            self.leave(exit);
        }
        outcome
    }

    fn leave(&mut self, exit: VmExit) {
        let guest = self.guest.take().expect("a VM exit needs a running guest");
        let vmcs = self.vmcs.as_mut().expect("a running guest has a current VMCS");
        guest.save(vmcs);
        self.others = guest.others;
        vmcs.set(field::EXIT_REASON, exit.reason_field());
        vmcs.set(field::EXIT_QUALIFICATION, exit.qualification);
        vmcs.set(field::EXIT_INTERRUPTION_INFO, exit.interruption_info.into());
        vmcs.set(field::EXIT_INSTRUCTION_LENGTH, exit.instruction_length.into());
        vmcs.set(field::IDT_VECTORING_INFO, 0);
        let injection = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
        vmcs.set(field::ENTRY_INTERRUPTION_INFO, injection & 0x7fff_ffff);
        self.exits += 1;
        self.flush_at_transition();
    }
}

/// The current VMCS. Nobody can reach it through the core while a guest runs there.
impl Vmcs for Core<'_> {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        match (&self.guest, &self.vmcs) {
            (None, Some(vmcs)) => vmcs.read(field),
            _ => Err(VmcsError::NoCurrentVmcs),
        }
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        match (&self.guest, &mut self.vmcs) {
            (None, Some(vmcs)) => vmcs.write(field, value),
            _ => Err(VmcsError::NoCurrentVmcs),
        }
    }
}

impl ReadMsr for Core<'_> {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        self.capability.read_msr(msr)
    }
}
