//! A vCPU on SVM: what the loop of `vlapic-svm-loop` needs of this machine.
//!
//! ```text
//! processor  the vCPU's processor: VMRUN, registers, decoding
//! around     the hypervisor around it
//! tables     what the vCPUs of a VM under AVIC share
//! ```

mod around;
mod processor;
mod tables;

use avic::{Host, Resources};
use vlapic_core::{Backend, Emulated};
use vlapic_svm_loop::{Error, Left, Loop, Plain, Setup, driver};

use super::vm::{Parked as AnyParked, address};
use super::{AnySlot, HypervisorError, Level, VirtualMachine};
use crate::guest::Program;
use crate::machine::{cpu, smp};
use crate::svm::state::Options;
use crate::svm::{Vcpu, capability, msr_permissions};
use around::Around;
use processor::Processor;
pub(super) use tables::{Tables, ring};

/// A vCPU that no CPU has loaded.
pub(super) struct Parked {
    vcpu: Vcpu,
    driver: Driver,
    program: Option<(Program, u64)>,
    started: bool,
}

/// The APIC's driver.
enum Driver {
    Plain(Plain<'static>),
    Avic(avic::Vcpu<'static>),
}

/// Runs vCPU `index` of `machine` on this CPU until its program finishes, it is told to stop, or it moves: then there is no
/// result yet.
pub(super) fn run(
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
) -> Result<Option<u64>, HypervisorError> {
    let processor = capability::enable()?;
    let moved = match machine.take_parked(index) {
        Some(AnyParked::Svm(parked)) => Some(parked),
        _ => None,
    };
    let begins = moved.is_none() && index == 0;
    let Parked { mut vcpu, driver, program, started } = match moved {
        Some(parked) => parked,
        None => make(machine, index, program, processor)?,
    };

    machine.set_cpu(index, Some(smp::apic_id(cpu::this_cpu())));
    let around = Around { machine, index };
    let current = Processor::new(vcpu.load(), machine, index, program);
    let window = machine.tables.as_ref().map(|tables| tables.window);
    let (result, driver, started) = match driver {
        Driver::Plain(plain) => {
            let Left { result, driver, started } =
                Loop::new(&around, current, plain, window, started).run(begins);
            (result.map_err(HypervisorError::from), Driver::Plain(driver), started)
        }
        Driver::Avic(avic) => {
            let Left { result, driver, started } =
                Loop::new(&around, current, avic, window, started).run(begins);
            (result.map_err(HypervisorError::from), Driver::Avic(driver), started)
        }
    };
    machine.set_cpu(index, None);
    if matches!(result, Ok(None)) {
        machine.park(index, AnyParked::Svm(Parked { vcpu, driver, program, started }));
    }
    result
}

/// Whether this processor accelerates APICs in x2APIC mode, or in xAPIC mode.
pub(crate) fn available(x2apic: bool) -> Result<(), HypervisorError> {
    capability::enable()?;
    let level = if x2apic { vlapic_svm_loop::Level::X2Avic } else { vlapic_svm_loop::Level::Avic };
    level.check(&tables::capabilities()).map_err(HypervisorError::NoAvic)
}

/// Once per vCPU: an APIC after RESET, and a control block programmed for as much help as the level wants.
fn make(
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
    processor: crate::svm::Capability,
) -> Result<Parked, HypervisorError> {
    let svr_writes = machine.config.svr_writes;
    let missing = HypervisorError::NotGranted(machine.config.level);
    if let AnySlot::Direct(slot) = machine.slot(index) {
        // CR8 belongs to the emulated APIC: its accesses exit, which also keeps V_TPR still while an interrupt window is
        // open (see `Options`).
        let vcpu = Vcpu::new(processor, machine.memory_root(), Options::default());
        let mut emulated = Emulated::new(slot, index == 0);
        emulated.set_svr_writes(svr_writes);
        emulated.apic_mut().bind_upcall(&machine.pending[index]);
        return Ok(Parked {
            vcpu,
            driver: Driver::Plain(Plain(emulated)),
            program,
            started: false,
        });
    }
    let tables = machine.tables.as_ref().ok_or(missing)?;
    let options = Options { cr8_exiting: false, ..Options::default() };
    let mut vcpu = Vcpu::new(processor, machine.memory_root(), options);
    let permissions = tables::msr_permissions(index);
    for register in msr_permissions::SWITCHED {
        permissions.intercept_read(register, false);
        permissions.intercept_write(register, false);
    }
    let mut current = vcpu.load();
    current.vmcb().control.msr_permissions = address(permissions);
    let resources = Resources {
        msr_permissions: permissions,
        window: tables.window,
        private_asid: false,
        host: Host::new(),
    };
    let capabilities = tables::capabilities();
    let setup = Setup {
        level: machine.config.level.of_avic(),
        svr_writes,
        pending: &machine.pending[index],
        resources,
    };
    let driver = driver(tables.shared, index, current.words(), &capabilities, setup);
    let avic = driver.ok_or(missing)?.map_err(HypervisorError::NoAvic)?;
    Ok(Parked { vcpu, driver: Driver::Avic(avic), program, started: false })
}

impl From<Error<Processor<'_>, Around>> for HypervisorError {
    fn from(error: Error<Processor<'_>, Around>) -> Self {
        match error {
            Error::Cpu(error) => Self::Svm(error),
            Error::Host(error) => error,
            Error::Stopped => Self::Stopped,
            Error::Driver(next) => Self::Entry(next),
            Error::UnknownExit(exit) => {
                Self::UnknownSvmExit { code: exit.code, info_1: exit.info_1, info_2: exit.info_2 }
            }
            Error::NoDevice(address) => Self::NoDevice(address),
            Error::NotDecoded => Self::NotDecoded,
        }
    }
}

impl Level {
    /// What the driver of AVIC is asked for. In x2APIC mode a processor with AVIC alone emulates: see [`available`].
    const fn of_avic(self) -> vlapic_svm_loop::Level {
        match self {
            Self::Avic => vlapic_svm_loop::Level::Avic,
            _ => vlapic_svm_loop::Level::Off,
        }
    }
}
