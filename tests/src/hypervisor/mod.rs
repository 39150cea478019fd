//! A small hypervisor whose processor is the silicon model and whose local APICs are the driver's.
//!
//! It does what an integrator's loop does, in the same order, one step at a time and in one thread, so that a test
//! decides every interleaving and a seed replays it. The guest is a sequence of [`Op`]s; each answers as the guest would
//! see it, whatever exits it took.
//!
//! ```
//! use vlapic_core::{Register, Trigger};
//! use vlapic_tests::hypervisor::{Config, Level, run};
//!
//! run(Config::new(Level::Posted), |hypervisor| {
//!     hypervisor.write(0, Register::Svr, 0x1ff);
//!     let exits = hypervisor.exits(0);
//!     hypervisor.post(0, 0x51, Trigger::Edge);
//!     assert_eq!(hypervisor.taken(0), [0x51]);
//!     assert_eq!(hypervisor.exits(0), exits, "a posted interrupt costs no exit");
//! });
//! ```

mod config;
mod exits;
mod guest;
mod host;
mod migrate;
mod storage;
mod subject;
mod vcpu;

pub use config::{Config, Level};
pub use guest::{Answer, Op};
pub use storage::{KICK, NOTIFICATION, Storage, VECTORS, WAKEUP};
pub(crate) use vcpu::prepared_region;
pub use vcpu::{Run, VirtualCpu};

use std::sync::Arc;

use apicv::{Capabilities, HostMode, Posting};
use vlapic_core::{Register, Slot, Vm};

use crate::contrast::Contrast;
use crate::model::{Core, Machine, Memory};

/// Makes a VM as `config` says, its vCPUs started and their APICs in the configured mode, and hands it to `test`.
pub fn run<R>(config: Config, test: impl FnOnce(&mut Hypervisor<'_>) -> R) -> R {
    let storage = Storage::new(config.vcpus);
    let slots = storage.slots(&config);
    let mut hypervisor = Hypervisor::new(&storage, &slots, config);
    hypervisor.start();
    let result = test(&mut hypervisor);
    hypervisor.check_hygiene();
    result
}

/// As [`run`], with every APIC software-enabled.
pub fn run_enabled<R>(config: Config, test: impl FnOnce(&mut Hypervisor<'_>) -> R) -> R {
    run(config, |hypervisor| {
        for index in 0..config.vcpus {
            let _ = hypervisor.write(index, Register::Svr, 0x1ff);
        }
        test(hypervisor)
    })
}

/// The hypervisor: physical CPU `i` is core `i`, and vCPU `i` begins on it.
#[derive(Debug)]
pub struct Hypervisor<'m> {
    /// The processors.
    pub machine: Machine<'m>,
    storage: &'m Storage,
    slots: &'m [Slot<'m, Posting<'m>>],
    vm: Vm<'m, Posting<'m>>,
    vcpus: Vec<VirtualCpu<'m>>,
    capabilities: Capabilities,
    config: Config,
    now: u64,
    /// Upcalls by the model with a cached flag instead of the driver.
    contrast: Option<Contrast>,
    faults: u64,
    /// Whether physical interrupts arrive as soon as they are sent. If not, [`arrive`](Self::arrive) lets them.
    pub prompt: bool,
}

impl<'m> Hypervisor<'m> {
    /// The VM, its vCPUs not started.
    ///
    /// # Panics
    /// If the processor does not report its capabilities or the driver refuses the VMCS.
    #[must_use]
    pub fn new(storage: &'m Storage, slots: &'m [Slot<'m, Posting<'m>>], config: Config) -> Self {
        let memory = Arc::new(Memory::new());
        storage.show_to(&memory);
        let cores = config.cpus.max(config.vcpus) as u32;
        let machine = Machine::new(cores, memory, config.processor, config.knobs, config.seed);
        let capabilities = Capabilities::detect(&config.processor).expect("VMX capability MSRs");
        let vm = Vm::new(slots).expect("slots in order");
        let vcpus = (0..config.vcpus)
            .map(|index| VirtualCpu::new(storage, slots, &capabilities, &config, index))
            .collect();
        let mut hypervisor = Self {
            machine,
            storage,
            slots,
            vm,
            vcpus,
            capabilities,
            config,
            now: 1000,
            contrast: None,
            faults: 0,
            prompt: true,
        };
        for core in &mut hypervisor.machine.cores {
            core.physical.x2apic = config.host == HostMode::X2Apic;
        }
        for index in 0..hypervisor.vcpus.len() {
            hypervisor.load(index, index);
        }
        hypervisor
    }

    /// What the VM was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The guest's TSC.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What every CPU may touch of a vCPU.
    pub fn slot(&self, index: usize) -> &'m Slot<'m, Posting<'m>> {
        &self.slots[index]
    }

    /// All vCPUs.
    pub fn vm(&self) -> Vm<'m, Posting<'m>> {
        self.vm
    }

    /// The memory behind the VM.
    pub fn storage(&self) -> &'m Storage {
        self.storage
    }

    /// A vCPU.
    pub fn vcpu(&self, index: usize) -> &VirtualCpu<'m> {
        &self.vcpus[index]
    }

    /// A vCPU.
    pub fn vcpu_mut(&mut self, index: usize) -> &mut VirtualCpu<'m> {
        &mut self.vcpus[index]
    }

    /// The vectors that a vCPU's guest took, in order.
    pub fn taken(&self, index: usize) -> &[u8] {
        &self.vcpus[index].taken
    }

    /// The vectors whose EOI came to the I/O APICs.
    pub fn broadcasts(&self, index: usize) -> &[u8] {
        &self.vcpus[index].broadcasts
    }

    /// How many VM exits a vCPU took.
    pub fn exits(&self, index: usize) -> u64 {
        self.vcpus[index].exits
    }

    /// How many VMREADs and VMWRITEs failed on purpose.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Leaves upcalls to the model with a cached flag.
    pub fn use_contrast(&mut self) {
        self.contrast = Some(Contrast::new(self.vcpus.len()));
    }

    /// The core that a vCPU is on.
    ///
    /// # Panics
    /// If it is on none.
    pub fn core(&mut self, index: usize) -> &mut Core<'m> {
        let cpu = self.vcpus[index].cpu.expect("a vCPU on a CPU");
        &mut self.machine.cores[cpu]
    }

    /// What must hold of any run: nothing reached memory that is not there, no guest access reached a physical APIC,
    /// and nobody changed the page under the processor.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_hygiene(&self) {
        assert_eq!(self.machine.memory().stray_accesses(), 0, "stray accesses");
        for core in &self.machine.cores {
            assert_eq!(core.physical.leaks(), [], "guest accesses at the physical APIC");
            if !self.config.silent_window {
                assert_eq!(core.page_violations(), [0; 0], "the page changed in guest mode");
            }
            let regions = core.vmcs().into_iter();
            for region in regions.chain(self.vcpus.iter().filter_map(|vcpu| vcpu.region.as_ref())) {
                assert_eq!(region.too_wide_writes(), [], "values wider than their field");
            }
        }
        assert!(self.storage.access_page_untouched(), "a store to the APIC-access page");
    }
}
