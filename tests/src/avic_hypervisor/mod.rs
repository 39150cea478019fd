//! A small hypervisor whose processor is the model of AVIC and whose local APICs are the driver's.
//!
//! It does what an integrator's loop does, in the same order, in one thread. Either each guest operation is carried to
//! its end before the next ([`Hypervisor::execute`]), or a schedule moves everything step by step ([`Storm`]); both go
//! through the same code around the driver.
//!
//! ```
//! use vlapic_core::{Register, Trigger};
//! use vlapic_tests::avic_hypervisor::{Config, run};
//!
//! run(Config::new(1), |hypervisor| {
//!     hypervisor.write(0, Register::Svr, 0x1ff);
//!     let exits = hypervisor.exits(0);
//!     hypervisor.post(0, 0x51, Trigger::Edge);
//!     assert_eq!(hypervisor.taken(0), [0x51]);
//!     assert_eq!(hypervisor.exits(0), exits, "a doorbell costs no exit");
//! });
//! ```

mod config;
mod exits;
mod guest;
mod host;
mod migrate;
mod storage;
mod storm;
mod subject;
mod vcpu;

pub use config::{Broken, Config};
pub use storage::Storage;
pub use storm::{Report, Storm};
pub use vcpu::{Run, VirtualCpu};

use std::sync::Arc;

use avic::{Backing, Capabilities, Face, Route, Shared};
use vlapic_core::{Register, Slot, Vm};

use crate::avic_model::{Machine, control, field, register};
use crate::contrast::Contrast;
use crate::model::{Memory, PhysicalInterrupt};

/// Makes a CPU leave guest mode.
pub const KICK: u8 = 0xf3;
/// The interrupt of the IOMMU's log, which goes to CPU 0.
pub const LOG: u8 = 0xf4;

/// Makes a VM as `config` says, its vCPUs started and their APICs in the configured mode, and hands it to `test`.
///
/// # Panics
/// If the hygiene is bad afterwards.
pub fn run<R>(config: Config, test: impl FnOnce(&mut Hypervisor<'_>) -> R) -> R {
    let storage = Storage::new(config.vcpus);
    let slots = storage.slots(&config);
    let routes = storage.routes();
    let memory = Arc::new(Memory::new());
    storage.show_to(&memory);
    let vm = Vm::new(&slots).expect("slots in order");
    let tables =
        avic::Storage { physical: &storage.physical, logical: &storage.logical, routes: &routes };
    let shared = Shared::new(vm, tables, &*memory).expect("memory with addresses");
    let mut hypervisor = Hypervisor::new(&storage, &shared, memory.clone(), config);
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

/// The hypervisor: physical CPU `i` is core `i`, and vCPU `i` begins on it if there is one.
#[derive(Debug)]
pub struct Hypervisor<'m> {
    /// The processors.
    pub machine: Machine<'m>,
    storage: &'m Storage,
    shared: &'m Shared<'m>,
    vcpus: Vec<VirtualCpu<'m>>,
    capabilities: Capabilities,
    config: Config,
    now: u64,
    /// Whether all that is in flight arrives before anything else is done.
    prompt: bool,
    /// Who raises upcalls instead of the driver.
    contrast: Option<Contrast>,
}

impl<'m> Hypervisor<'m> {
    fn new(
        storage: &'m Storage,
        shared: &'m Shared<'m>,
        memory: Arc<Memory<'m>>,
        config: Config,
    ) -> Self {
        let Config { first_cpu_id, processor, knobs, seed, .. } = config;
        let ids = first_cpu_id..first_cpu_id + config.cpus as u32;
        let mut machine = Machine::with_ids(ids, memory, processor, knobs, seed);
        let log = &mut machine.iommu.log;
        log.interrupt = Some(PhysicalInterrupt { destination: first_cpu_id, vector: LOG });
        log.write(register::LOG_BASE, 8 << 56 | Storage::LOG);
        log.write(register::CONTROL, 1 << 28 | 1 << 29);
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|index| VirtualCpu::new(storage, shared, &config, index))
            .collect();
        let mut hypervisor = Self {
            machine,
            storage,
            shared,
            vcpus,
            capabilities: Capabilities::detect(&config.processor),
            config,
            now: 1000,
            prompt: true,
            contrast: None,
        };
        for index in 0..config.vcpus {
            hypervisor.vcpus[index].cpu = (index < config.cpus).then_some(index);
            hypervisor.route(index, 0x60);
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

    /// What the vCPUs share.
    pub fn shared(&self) -> &'m Shared<'m> {
        self.shared
    }

    /// What every CPU may touch of a vCPU.
    pub fn slot(&self, index: usize) -> &'m Slot<'m, Backing> {
        &self.shared.vm().slots()[index]
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

    /// How many exits a vCPU took.
    pub fn exits(&self, index: usize) -> u64 {
        self.vcpus[index].exits
    }

    /// Leaves upcalls to the model with a cached flag.
    pub fn use_contrast(&mut self) {
        self.contrast = Some(Contrast::new(self.vcpus.len()));
    }

    /// How the processor helps a vCPU, as its VMCB says.
    pub fn face(&self, index: usize) -> Face {
        let vcpu = &self.vcpus[index];
        let on_core = || vcpu.cpu.and_then(|cpu| self.machine.cores[cpu].vmcb());
        let vmcb = vcpu.vmcb.as_ref().or_else(on_core).expect("a VMCB somewhere");
        let word = vmcb.get64(field::VIRTUAL_INTERRUPT);
        match (word & control::AVIC != 0, word & control::X2AVIC != 0) {
            (false, _) => Face::Emulated,
            (true, false) => Face::XAvic,
            (true, true) => Face::X2Avic,
        }
    }

    fn route_of(&self, index: usize) -> &'m Route<'m> {
        &self.shared.routes()[index]
    }

    /// What must hold of any run: nothing reached memory that is not there, no guest access reached a physical APIC or
    /// the page behind the window.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_hygiene(&self) {
        assert_eq!(self.machine.memory().stray_accesses(), 0, "stray accesses");
        assert_eq!(self.machine.iommu.faults(), [], "blocked device interrupts");
        for core in &self.machine.cores {
            assert_eq!(core.leaks(), [], "guest accesses at the physical APIC");
        }
        assert!(self.storage.window_untouched(), "a store to the page behind the window");
    }
}
