//! One vCPU as the hypervisor keeps it.

use apicv::{Capabilities, Grant, Posting, Vcpu};
use vlapic_core::Entry;
use vlapic_core::{Event, Slot};

use super::{Config, Storage};
use crate::model::{VmExit, VmcsRegion, controls, field};

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It runs or wants to.
    Ready,
    /// It executed HLT and sleeps on the wakeup list of this CPU.
    Blocked {
        /// The CPU.
        cpu: usize,
    },
    /// It is still in HLT and was told to look for what may end that.
    Woken,
    /// It waits for INIT and SIPI.
    WaitsForSipi,
}

/// A vCPU: the driver's part, the VMCS, and what the guest saw.
#[derive(Debug)]
pub struct VirtualCpu<'m> {
    /// The driver.
    pub driver: Vcpu<'m>,
    /// What the driver granted.
    pub grant: Grant,
    /// RFLAGS.IF of the guest.
    pub interrupt_flag: bool,
    /// What it is doing.
    pub run: Run,
    /// Events other than vectors that it took.
    pub events: Vec<Event>,
    /// The last VM exit.
    pub last_exit: Option<VmExit>,
    /// What the driver said at the last entry.
    pub entry: Option<Entry>,
    pub(super) taken: Vec<u8>,
    pub(super) broadcasts: Vec<u8>,
    pub(super) exits: u64,
    /// Entries before which translations had to be flushed.
    pub flushes: u64,
    /// The VMCS while it is not current on a core.
    pub(super) region: Option<VmcsRegion>,
    pub(super) cpu: Option<usize>,
    /// Somebody wants it to go through its entry work before it runs on.
    pub(super) kicked: bool,
    /// What the driver has put into the VM-entry interruption information for an entry not yet made.
    pub(super) in_flight: Option<u8>,
    /// An event to inject that is no external interrupt.
    pub(super) injects: Option<u8>,
}

impl<'m> VirtualCpu<'m> {
    pub(super) fn new(
        storage: &'m Storage,
        slots: &'m [Slot<'m, Posting<'m>>],
        capabilities: &Capabilities,
        config: &Config,
        index: usize,
    ) -> Self {
        let mut region = prepared_region(config);
        let mut driver = Vcpu::new(&slots[index], index == 0);
        driver.set_svr_writes(config.svr_writes);
        driver.apic_mut().bind_upcall(&storage.pending[index]);
        let addresses = storage.addresses(index);
        let grant = driver
            .configure(&mut region, capabilities, config.wanted, &addresses)
            .expect("a processor that can be programmed");
        Self {
            driver,
            grant,
            interrupt_flag: true,
            run: if index == 0 { Run::Ready } else { Run::WaitsForSipi },
            events: Vec::new(),
            last_exit: None,
            entry: None,
            taken: Vec::new(),
            broadcasts: Vec::new(),
            exits: 0,
            flushes: 0,
            region: Some(region),
            cpu: None,
            kicked: false,
            in_flight: None,
            injects: None,
        }
    }

    /// Begins a new list of vectors taken.
    pub fn forget_taken(&mut self) {
        self.taken.clear();
    }

    /// The CPU it is on.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }
}

/// A VMCS as a hypervisor has it before the driver comes: external interrupts, HLT and the preemption timer exit.
pub(crate) fn prepared_region(config: &Config) -> VmcsRegion {
    use controls::{exit, pin, primary};
    let mut region = VmcsRegion::with_default_controls(config.processor);
    region.set_bits(field::PIN_BASED, pin::EXTERNAL_INTERRUPT_EXITING | pin::PREEMPTION_TIMER);
    region.set_bits(field::PRIMARY, primary::HLT_EXITING);
    region.set_bits(field::VM_EXIT_CONTROLS, exit::ACKNOWLEDGE_INTERRUPT);
    region.set(field::PREEMPTION_TIMER, u64::from(u32::MAX));
    region
}
