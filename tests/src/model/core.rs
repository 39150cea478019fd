//! One core: VMX root operation, the current VMCS, and the guest that runs on it.

use std::sync::Arc;

use vlapic_hal::{MsrError, ReadMsr, Vmcs, VmcsError, VmcsField};

use super::bus::PhysicalBus;
use super::capability::Capability;
use super::entry::{Entered, EntryFailure, enter};
use super::exit::{ExitReason, Outcome, VmExit};
use super::field;
use super::guest::{Activity, Guest, Shadow, Window};
use super::knobs::Knobs;
use super::memory::Memory;
use super::mmio::Access;
use super::page::offset;
use super::physical::PhysicalApic;
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
    memory: Arc<Memory<'m>>,
    bus: Arc<PhysicalBus>,
    capability: Capability,
    knobs: Knobs,
    vmcs: Option<VmcsRegion>,
    guest: Option<Guest<'m>>,
    page_violations: Vec<u32>,
    exits: u64,
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
            memory,
            bus,
            capability,
            knobs,
            vmcs: None,
            guest: None,
            page_violations: Vec::new(),
            exits: 0,
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
                self.guest = Some(guest);
                if let Some(exit) = entered.exit {
                    self.leave(exit);
                }
                Ok(entered)
            }
            Err(violations) => {
                vmcs.set(field::INSTRUCTION_ERROR, 7);
                Err(EntryFailure::InvalidControls(violations))
            }
        }
    }

    /// The host takes the pending physical interrupt through its own IDT; it still has to end it at
    /// [`physical`](Core::physical).
    pub fn host_interrupt(&mut self) -> Option<u8> {
        assert!(self.guest.is_none(), "the host runs in root operation");
        self.physical.acknowledge()
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

    fn leave(&mut self, exit: VmExit) {
        let guest = self.guest.take().expect("a VM exit needs a running guest");
        let vmcs = self.vmcs.as_mut().expect("a running guest has a current VMCS");
        guest.save(vmcs);
        vmcs.set(field::EXIT_REASON, exit.reason_field());
        vmcs.set(field::EXIT_QUALIFICATION, exit.qualification);
        vmcs.set(field::EXIT_INTERRUPTION_INFO, exit.interruption_info.into());
        vmcs.set(field::EXIT_INSTRUCTION_LENGTH, exit.instruction_length.into());
        vmcs.set(field::IDT_VECTORING_INFO, 0);
        let injection = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
        vmcs.set(field::ENTRY_INTERRUPTION_INFO, injection & 0x7fff_ffff);
        self.exits += 1;
    }
}

/// Guest operations, each one step.
impl<'m> Core<'m> {
    /// Reads the APIC window.
    pub fn mmio_read(&mut self, offset: u32, width: u32) -> Outcome {
        self.mmio(&[Access::read(offset, width)])
    }

    /// Writes the APIC window.
    pub fn mmio_write(&mut self, offset: u32, width: u32, value: u64) -> Outcome {
        self.mmio(&[Access::write(offset, width, value)])
    }

    /// Makes several accesses to the APIC window in one instruction.
    pub fn mmio(&mut self, accesses: &[Access]) -> Outcome {
        let window = self.window;
        self.instruction(|guest, physical| guest.mmio(window, physical, accesses))
    }

    /// RDMSR.
    pub fn rdmsr(&mut self, msr: u32) -> Outcome {
        self.instruction(|guest, physical| guest.rdmsr(physical, msr))
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Outcome {
        self.instruction(|guest, physical| guest.wrmsr(physical, msr, value))
    }

    /// MOV from CR8.
    pub fn read_cr8(&mut self) -> Outcome {
        self.instruction(|guest, physical| {
            if guest.controls.cr8_store_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::CrAccess, 0x18));
            }
            let shadow = guest.controls.tpr_shadow;
            Outcome::Value(if shadow { guest.page.vtpr() >> 4 } else { physical.cr8 }.into())
        })
    }

    /// MOV to CR8.
    pub fn write_cr8(&mut self, value: u64) -> Outcome {
        self.instruction(|guest, physical| {
            if guest.controls.cr8_load_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::CrAccess, 0x08));
            }
            if value > 0xf {
                return Outcome::GeneralProtection;
            }
            if !guest.controls.tpr_shadow {
                physical.cr8 = value as u8;
                return Outcome::Done;
            }
            guest.page.store(offset::VTPR, (value as u32) << 4);
            guest.tpr_virtualization().map_or(Outcome::Done, Outcome::Exit)
        })
    }

    /// HLT: an exit, or the HLT state until something wakes the core.
    pub fn hlt(&mut self) -> Outcome {
        self.instruction(|guest, _| {
            if guest.controls.hlt_exiting {
                return Outcome::Exit(VmExit::fault(ExitReason::Hlt, 0));
            }
            guest.activity = Activity::Hlt;
            Outcome::Done
        })
    }

    /// VMCALL.
    pub fn vmcall(&mut self) -> Outcome {
        self.instruction(|_, _| Outcome::Exit(VmExit::fault(ExitReason::Vmcall, 0)))
    }

    /// CPUID.
    pub fn cpuid(&mut self) -> Outcome {
        self.instruction(|_, _| Outcome::Exit(VmExit::fault(ExitReason::Cpuid, 0)))
    }

    /// The core enters the shutdown state, as after a triple fault that does not exit.
    pub fn shut_down(&mut self) -> Outcome {
        self.instruction(|guest, _| {
            guest.activity = Activity::Shutdown;
            Outcome::Done
        })
    }

    fn instruction(
        &mut self,
        op: impl FnOnce(&mut Guest<'m>, &mut PhysicalApic) -> Outcome,
    ) -> Outcome {
        self.step(|guest, physical| {
            assert_eq!(
                guest.activity,
                Activity::Active,
                "the guest executes nothing in this state"
            );
            op(guest, physical)
        })
    }
}

/// Events.
impl<'m> Core<'m> {
    /// An instruction boundary: the pending event with the highest priority happens, if any.
    ///
    /// Order: preemption timer, interrupt window or virtual interrupt, physical interrupt. A posted interrupt is
    /// processed and the order starts again, so a notification can end in a delivery within one boundary.
    pub fn boundary(&mut self, interrupt_flag: bool, shadow: Shadow) -> Outcome {
        self.step(|guest, physical| {
            if guest.preemption_timer_expired() {
                return Outcome::Exit(VmExit::fault(ExitReason::PreemptionTimer, 0));
            }
            let mut outcome = Outcome::Nothing;
            loop {
                if guest.interruptible(interrupt_flag, shadow) {
                    if guest.controls.interrupt_window_exiting {
                        return Outcome::Exit(VmExit::fault(ExitReason::InterruptWindow, 0));
                    }
                    if guest.recognized {
                        return Outcome::Delivered(guest.deliver());
                    }
                }
                match guest.physical_interrupt(physical, interrupt_flag, shadow) {
                    Outcome::Posted => outcome = Outcome::Posted,
                    Outcome::Nothing => return outcome,
                    other => return other,
                }
            }
        })
    }

    /// A physical interrupt arrives and, if a guest runs, is handled before anything else.
    ///
    /// In root operation it stays pending at the physical APIC: the host takes it with
    /// [`host_interrupt`](Core::host_interrupt), or the next guest meets it.
    pub fn external_interrupt(&mut self, vector: u8) -> Outcome {
        self.physical.raise(vector);
        if !self.in_guest() {
            return Outcome::Nothing;
        }
        self.step(|guest, physical| guest.physical_interrupt(physical, false, Shadow::None))
    }

    /// A physical interrupt arrives and waits for the next instruction boundary.
    pub fn raise(&mut self, vector: u8) {
        self.physical.raise(vector);
    }

    /// An NMI arrives at a running guest.
    pub fn nmi(&mut self) -> Outcome {
        self.step(|guest, _| {
            if guest.controls.nmi_exiting {
                let interruption_info = 1 << 31 | 2 << 8 | 2;
                return Outcome::Exit(VmExit {
                    interruption_info,
                    ..VmExit::fault(ExitReason::Nmi, 0)
                });
            }
            guest.activity = Activity::Active;
            if std::mem::take(&mut guest.suppressed_threshold_exit) {
                return Outcome::Exit(VmExit::trap(ExitReason::TprBelowThreshold, 0));
            }
            Outcome::Delivered(2)
        })
    }

    /// Lets the VMX-preemption timer count down. The exit comes at the next [`boundary`](Core::boundary).
    pub fn tick(&mut self, ticks: u32) {
        let timer = self.guest.as_mut().and_then(|guest| guest.preemption_timer.as_mut());
        if let Some(left) = timer {
            *left = left.saturating_sub(ticks);
        }
    }

    /// The activity state of the running guest.
    pub fn activity(&self) -> Option<Activity> {
        self.guest.as_ref().map(|guest| guest.activity)
    }

    /// RVI and SVI of the running guest.
    pub fn interrupt_status(&self) -> Option<(u8, u8)> {
        self.guest.as_ref().map(|guest| (guest.rvi, guest.svi))
    }

    /// Whether the running guest has a recognized virtual interrupt, waiting for a boundary that lets it in.
    pub fn recognized(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.recognized)
    }

    fn step(&mut self, op: impl FnOnce(&mut Guest<'m>, &mut PhysicalApic) -> Outcome) -> Outcome {
        let guest = self.guest.as_mut().expect("guest operations need a VM entry first");
        self.page_violations.extend(guest.fields_changed_by_software());
        let outcome = op(guest, &mut self.physical);
        guest.remember_page();
        if let Outcome::Exit(exit) = outcome {
            self.leave(exit);
        }
        outcome
    }
}

impl Guest<'_> {
    /// Takes the pending physical interrupt: posted-interrupt processing, a VM exit, or delivery to the guest.
    fn physical_interrupt(
        &mut self,
        physical: &mut PhysicalApic,
        interrupt_flag: bool,
        shadow: Shadow,
    ) -> Outcome {
        let awake = matches!(self.activity, Activity::Active | Activity::Hlt);
        let Some(pending) = physical.pending().filter(|_| awake) else {
            return Outcome::Nothing;
        };
        if !self.controls.external_interrupt_exiting {
            if !self.interruptible(interrupt_flag, shadow) {
                return Outcome::Nothing;
            }
            physical.acknowledge();
            self.activity = Activity::Active;
            return Outcome::Delivered(pending);
        }
        if !self.controls.acknowledge_interrupt_on_exit {
            return Outcome::Exit(VmExit::fault(ExitReason::ExternalInterrupt, 0));
        }
        physical.acknowledge();
        if self.controls.posted_interrupts
            && u16::from(pending) == self.controls.notification_vector
        {
            self.posted_interrupt_processing(physical);
            return Outcome::Posted;
        }
        let interruption_info = 1 << 31 | u32::from(pending);
        Outcome::Exit(VmExit {
            interruption_info,
            ..VmExit::fault(ExitReason::ExternalInterrupt, 0)
        })
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
