//! Bring-up cases: the SVM layer and its guests, with no APIC driver at all.

mod basics;
mod cpus;
mod interrupts;
mod memory;
mod priority;
mod registers;

use super::npt::Npt;
use super::state::Options;
use super::vcpu::Current;
use super::{Exit, Reason, SvmError, Vcpu, capability};
use crate::guest::hypercall::Hypercall;
use crate::guest::{self, Context, Program, Start};
use crate::log;
use crate::machine::self_check::{Case, Outcome};
use crate::machine::{interrupts as host, smp};

pub(crate) const CASES: &[Case] = &[
    Case { name: "svm-vmmcall", run: |_| outcome(basics::vmmcall()) },
    Case { name: "svm-fault", run: |_| outcome(basics::fault()) },
    Case { name: "svm-entry-failure", run: |_| outcome(basics::entry_failure()) },
    Case { name: "svm-shutdown", run: |_| outcome(basics::shutdown()) },
    Case { name: "svm-registers", run: |_| outcome(registers::all_registers()) },
    Case { name: "svm-msr-permissions", run: |_| outcome(registers::msr_permissions()) },
    Case { name: "svm-x2apic-msrs", run: |_| outcome(registers::x2apic_msrs()) },
    Case { name: "svm-cr8", run: |_| outcome(priority::cr8()) },
    Case { name: "svm-task-priority", run: |_| outcome(priority::task_priority()) },
    Case { name: "svm-external-interrupt", run: |_| outcome(interrupts::external_interrupt()) },
    Case { name: "svm-turn", run: |_| outcome(interrupts::turn_ends()) },
    Case { name: "svm-hlt", run: |_| outcome(interrupts::hlt()) },
    Case { name: "svm-halted", run: |_| outcome(interrupts::halted()) },
    Case { name: "svm-nmi", run: |_| outcome(interrupts::nmi()) },
    Case { name: "svm-interrupt-window", run: |_| outcome(interrupts::interrupt_window()) },
    Case { name: "svm-virtual-interrupt", run: |_| outcome(priority::virtual_interrupt()) },
    Case { name: "svm-reinject", run: |_| outcome(interrupts::reinject()) },
    Case { name: "svm-device", run: |_| outcome(memory::device()) },
    Case { name: "svm-silent-page", run: |_| outcome(memory::silent_page()) },
    Case { name: "svm-read-only-page", run: |_| outcome(memory::read_only_page()) },
    Case { name: "svm-end-of-interrupt", run: |_| outcome(memory::end_of_interrupt()) },
    Case { name: "svm-physical-apic", run: |_| outcome(memory::physical_apic()) },
    Case { name: "svm-sipi", run: |_| outcome(cpus::sipi()) },
    Case { name: "svm-all-cpus", run: |_| outcome(cpus::all_cpus()) },
    Case { name: "svm-migrate", run: |_| outcome(cpus::migrate()) },
];

/// Why a case did not pass.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Svm(SvmError),
    Wrong(&'static str),
    Skip(&'static str),
}

impl From<SvmError> for Failure {
    fn from(error: SvmError) -> Self {
        Self::Svm(error)
    }
}

fn outcome(result: Result<(), Failure>) -> Outcome {
    match result {
        Ok(()) => Outcome::Pass,
        Err(Failure::Svm(SvmError::NoSvm)) => Outcome::Skip("no SVM"),
        Err(Failure::Svm(SvmError::NoNestedPaging)) => Outcome::Skip("no nested paging"),
        Err(Failure::Svm(SvmError::LockedByFirmware)) => Outcome::Skip("SVM is locked off"),
        Err(Failure::Skip(reason)) => Outcome::Skip(reason),
        Err(Failure::Wrong(what)) => Outcome::Fail(what),
        Err(Failure::Svm(error)) => {
            log!("{error}");
            Outcome::Fail("the SVM layer failed, see the log")
        }
    }
}

fn check(right: bool, what: &'static str) -> Result<(), Failure> {
    if right { Ok(()) } else { Err(Failure::Wrong(what)) }
}

/// A guest on this CPU, ready to start `program`, and all that it needs. The context is the one with this CPU's number.
fn with_guest(
    options: Options,
    program: Program,
    argument: u64,
    body: impl FnOnce(&mut Current<'_>, &mut Npt, &'static Context) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let capability = capability::enable()?;
    let mut npt = Npt::identity()?;
    let context = guest::context(smp::this_cpu() % guest::MAX_VCPUS);
    context.reset();
    let mut vcpu = Vcpu::new(capability, npt.root(), options);
    let mut current = vcpu.load();
    current.start(&Start::new(context, program, argument));
    body(&mut current, &mut npt, context)
}

/// One turn of the guest. Interrupts for the host are off only while it lasts.
fn turn(current: &mut Current<'_>) -> Result<Exit, Failure> {
    Ok(host::without(|| current.run())?)
}

/// Runs the guest until the exit that must come next. Interrupts that the host gets meanwhile do not count.
fn until(current: &mut Current<'_>, reason: Reason) -> Result<Exit, Failure> {
    loop {
        let exit = turn(current)?;
        if exit.reason == reason {
            return Ok(exit);
        }
        if !matches!(exit.reason, Reason::Interrupt | Reason::Nmi) {
            log!("expected {reason:?}: {exit:x?} at {:#x}", current.vmcb().save.rip);
            if exit.reason == Reason::Vmmcall {
                log!("{:x?}", Hypercall::decode(current.general()));
            }
            return Err(Failure::Wrong("another exit came, see the log"));
        }
    }
}

/// Runs the guest until its next hypercall, and answers 0.
fn until_call(current: &mut Current<'_>) -> Result<Hypercall, Failure> {
    let exit = until(current, Reason::Vmmcall)?;
    current.skip_instruction(&exit)?;
    let call = Hypercall::decode(current.general());
    current.general()[0] = 0;
    Ok(call)
}

/// The guest must come to the point of this number next.
fn until_phase(current: &mut Current<'_>, number: u64) -> Result<(), Failure> {
    let call = until_call(current)?;
    if call != Hypercall::Phase(number) {
        log!("expected phase {number}: {call:x?}");
    }
    check(call == Hypercall::Phase(number), "the guest came to another point")
}

/// The guest must finish next, with this result.
fn until_finish(current: &mut Current<'_>, value: u64) -> Result<(), Failure> {
    let call = until_call(current)?;
    if call != Hypercall::Finish(value) {
        log!("expected {value:#x}: {call:x?}");
    }
    check(call == Hypercall::Finish(value), "the guest finished with another result")
}
