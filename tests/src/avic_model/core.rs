//! One core: the host, VMRUN, and the guest that runs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vlapic_hal::{MsrError, WriteMsr};

use crate::model::{Memory, MsrLeak};

use super::capability::Capability;
use super::checks::{Violation, violations};
use super::controls::loaded;
use super::doorbell::{DoorbellRegister, Doorbells};
use super::exit::{Outcome, VmExit, code};
use super::guest::{Guest, Silicon, Surroundings};
use super::knobs::Knobs;
use super::nested::NestedPages;
use super::operation::GuestOp;
use super::vmcb::{Vmcb, field, intercept};

/// Where a guest finds its APIC after reset.
const DEFAULT_APIC_BASE: u64 = 0xfee0_0000;

/// A core.
///
/// [`vmrun`](Core::vmrun) takes a VMCB; the exit that ends the guest leaves it with the core until
/// [`take_vmcb`](Core::take_vmcb). A guest operation in host mode, or on a halted guest, is a mistake of the test and
/// panics.
#[derive(Debug)]
pub struct Core<'m> {
    id: u32,
    around: Surroundings<'m>,
    silicon: Silicon,
    guest: Option<Guest<'m>>,
    vmcb: Option<Vmcb>,
    /// What each VMCB held when it last ran here, by address; clean bits refer to it.
    cached: BTreeMap<u64, Vmcb>,
    running: Option<Vmcb>,
    exits: u64,
    stray_doorbells: u64,
    /// Pages that a confidential guest owns; a backing page must not be among them.
    pub guest_owned_pages: BTreeSet<u64>,
}

/// What happened at a VMRUN that passed the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// The event that EVENTINJ asked for, which the guest has taken.
    pub injected: Option<Injected>,
}

/// An event that was injected: the type field of EVENTINJ and the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected {
    /// 0 an interrupt, 2 NMI, 3 an exception, 4 a software interrupt.
    pub kind: u8,
    /// The vector.
    pub vector: u8,
}

/// Host mode.
impl<'m> Core<'m> {
    /// A core with physical APIC ID `id`, in host mode with RFLAGS.IF = 1.
    #[must_use]
    pub fn new(
        id: u32,
        memory: Arc<Memory<'m>>,
        doorbells: Arc<Doorbells>,
        nested: Arc<NestedPages>,
        capability: Capability,
        knobs: Knobs,
    ) -> Self {
        Core {
            id,
            around: Surroundings { memory, doorbells, nested, capability, knobs },
            silicon: Silicon { host_interrupt_flag: true, ..Silicon::default() },
            guest: None,
            vmcb: None,
            cached: BTreeMap::new(),
            running: None,
            exits: 0,
            stray_doorbells: 0,
            guest_owned_pages: BTreeSet::new(),
        }
    }

    /// The physical APIC ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The features that the core reports.
    #[must_use]
    pub fn capability(&self) -> Capability {
        self.around.capability
    }

    /// VMRUN.
    ///
    /// # Errors
    /// What the VMCB violates. The exit code is in the VMCB, which the core keeps; it stays in host mode.
    pub fn vmrun(&mut self, mut vmcb: Vmcb) -> Result<Entered, Vec<Violation>> {
        assert!(self.guest.is_none(), "VMRUN belongs to the host");
        let Surroundings { capability, knobs, .. } = self.around;
        let seen = loaded(&vmcb, self.cached.get(&vmcb.address()), capability, knobs);
        let found = violations(&seen, capability, &knobs, &self.guest_owned_pages);
        if let Some(first) = found.first() {
            vmcb.set64(field::EXIT_CODE, first.exit_code(&knobs));
            self.vmcb = Some(vmcb);
            return Err(found);
        }
        self.silicon.tlb.flush(seen.get32(field::TLB_CONTROL) as u8, seen.get32(field::ASID));
        let mut guest = Guest::new(&seen, self.around.clone());
        let injected = injected(&seen);
        if injected.is_some() {
            guest.enter_handler();
        }
        self.guest = Some(guest);
        self.running = Some(seen);
        self.vmcb = Some(vmcb);
        Ok(Entered { injected })
    }

    /// The VMCB that ran last. While a guest runs its guest state is that of the last exit.
    #[must_use]
    pub fn vmcb(&self) -> Option<&Vmcb> {
        self.vmcb.as_ref()
    }

    /// Takes the VMCB back after an exit.
    pub fn take_vmcb(&mut self) -> Option<Vmcb> {
        assert!(self.guest.is_none(), "the core uses the VMCB while the guest runs");
        self.vmcb.take()
    }

    /// RFLAGS.IF of the host, which VMRUN takes along.
    pub fn set_host_interrupt_flag(&mut self, flag: bool) {
        assert!(self.guest.is_none(), "the host runs in host mode");
        self.silicon.host_interrupt_flag = flag;
    }

    /// CR8 of the host, which a guest reads and writes if nothing virtualizes its own.
    #[must_use]
    pub fn host_cr8(&self) -> u8 {
        self.silicon.host_cr8
    }

    /// The host takes the highest pending physical interrupt through its own IDT.
    pub fn host_interrupt(&mut self) -> Option<u8> {
        assert!(self.guest.is_none(), "the host runs in host mode");
        self.silicon.physical_interrupts.pop_last()
    }

    /// Forgets translations, as a host does with INVLPGA; `None` forgets those of every ASID.
    pub fn flush_tlb(&mut self, asid: Option<u32>) {
        self.silicon.tlb.flush(if asid.is_some() { 3 } else { 1 }, asid.unwrap_or(0));
    }

    /// Whether a guest runs.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// How many exits the core took, not counting a VMRUN that failed.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// How many doorbells arrived while no guest ran here.
    #[must_use]
    pub fn stray_doorbells(&self) -> u64 {
        self.stray_doorbells
    }

    /// The guest's MSR accesses that reached the processor itself because nothing caught them.
    #[must_use]
    pub fn leaks(&self) -> &[MsrLeak] {
        &self.silicon.leaks
    }
}

/// The guest.
impl<'m> Core<'m> {
    /// Starts a guest operation, of which [`step`](Core::step) makes the steps.
    pub fn begin(&mut self, op: GuestOp) {
        self.running_guest().begin(op);
    }

    /// Makes one step of the operation that was begun. Returns its outcome when it ends.
    pub fn step(&mut self) -> Option<Outcome> {
        let guest = self.guest.as_mut().expect("guest operations need a VMRUN first");
        let outcome = guest.step(&mut self.silicon)?;
        Some(self.settle(outcome))
    }

    /// Whether an operation was begun and has not ended.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.operation.is_some())
    }

    /// A whole guest operation, with nothing in between.
    pub fn run(&mut self, op: GuestOp) -> Outcome {
        self.begin(op);
        self.finish()
    }

    /// The rest of the operation that was begun, with nothing in between.
    pub fn finish(&mut self) -> Outcome {
        loop {
            if let Some(outcome) = self.step() {
                return outcome;
            }
        }
    }

    /// A 32-bit load from the APIC page at its default address.
    pub fn mmio_read(&mut self, offset: u32) -> Outcome {
        self.run(GuestOp::Read { address: DEFAULT_APIC_BASE + u64::from(offset), width: 4 })
    }

    /// A 32-bit store to the APIC page at its default address.
    pub fn mmio_write(&mut self, offset: u32, value: u32) -> Outcome {
        let address = DEFAULT_APIC_BASE + u64::from(offset);
        self.run(GuestOp::Write { address, width: 4, value: value.into() })
    }

    /// RDMSR.
    pub fn rdmsr(&mut self, msr: u32) -> Outcome {
        self.run(GuestOp::Rdmsr { msr })
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Outcome {
        self.run(GuestOp::Wrmsr { msr, value })
    }

    /// An instruction boundary: the pending event with the highest priority happens, if any.
    ///
    /// Order: physical interrupt, virtual NMI, virtual interrupt. A delivery clears RFLAGS.IF, as interrupt gates do.
    pub fn poll(&mut self) -> Outcome {
        let guest = self.guest.as_mut().expect("an instruction boundary needs a VMRUN first");
        let outcome = guest.poll(&mut self.silicon);
        self.settle(outcome)
    }

    /// An instruction boundary with the given RFLAGS.IF and interrupt shadow, which the guest keeps.
    pub fn boundary(&mut self, interrupt_flag: bool, shadow: bool) -> Outcome {
        let guest = self.running_guest();
        guest.interrupt_flag = interrupt_flag;
        guest.shadow = shadow;
        self.poll()
    }

    /// Whether the running guest is halted.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.halted)
    }

    /// RFLAGS.IF of the running guest.
    #[must_use]
    pub fn interrupt_flag(&self) -> Option<bool> {
        self.guest.as_ref().map(|guest| guest.interrupt_flag)
    }

    /// V_TPR of the running guest.
    #[must_use]
    pub fn v_tpr(&self) -> Option<u8> {
        self.guest.as_ref().map(|guest| guest.tpr >> 4)
    }

    fn running_guest(&mut self) -> &mut Guest<'m> {
        self.guest.as_mut().expect("guest operations need a VMRUN first")
    }

    /// Leaves the guest if that is the outcome.
    fn settle(&mut self, outcome: Outcome) -> Outcome {
        let Outcome::Exit(exit) = outcome else { return outcome };
        let guest = self.guest.take().expect("an exit needs a running guest");
        let vmcb = self.vmcb.as_mut().expect("a running guest has a VMCB");
        guest.save(vmcb, exit);
        if let Some(mut seen) = self.running.take() {
            guest.save(&mut seen, exit);
            self.cached.insert(seen.address(), seen);
        }
        self.exits += 1;
        outcome
    }
}

/// What reaches the core from outside.
impl Core<'_> {
    /// A doorbell arrives. It makes a guest look at its IRR; in host mode nothing happens, since VMRUN does so anyway.
    pub fn doorbell(&mut self) {
        match &mut self.guest {
            Some(guest) => guest.evaluation_due = true,
            None => self.stray_doorbells += 1,
        }
    }

    /// A physical interrupt arrives. It waits for the guest's next boundary, or for the host.
    pub fn physical_interrupt(&mut self, vector: u8) {
        self.silicon.physical_interrupts.insert(vector);
    }

    /// A physical NMI arrives at a running guest. Without the intercept it is delivered there.
    pub fn nmi(&mut self) -> Outcome {
        let vmcb = self.running.as_ref().expect("the guest runs");
        if vmcb.get32(field::INTERCEPTS_3) & intercept::NMI != 0 {
            return self.settle(Outcome::Exit(VmExit::fault(code::NMI, 0, 0)));
        }
        self.running_guest().enter_handler();
        Outcome::DeliveredNmi
    }
}

/// The host's MSRs, of which the model has the doorbell register.
impl WriteMsr for Core<'_> {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        DoorbellRegister::new(self.around.doorbells.clone(), self.around.knobs)
            .write_msr(msr, value)
    }
}

fn injected(vmcb: &Vmcb) -> Option<Injected> {
    let word = vmcb.get64(field::EVENT_INJECTION);
    (word >> 31 & 1 != 0).then_some(Injected { kind: (word >> 8) as u8 & 7, vector: word as u8 })
}
