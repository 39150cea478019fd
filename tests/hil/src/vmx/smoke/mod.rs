//! Bring-up cases: the VMX layer and its guests, with no APIC driver at all.

mod basics;
mod cpus;
mod interrupts;
mod memory;
mod registers;

use super::ept::Ept;
use super::state::Options;
use super::vcpu::Current;
use super::{Exit, Reason, Vcpu, VmxError, capability};
use crate::guest::hypercall::Hypercall;
use crate::guest::{self, Context, Program, Start};
use crate::log;
use crate::machine::self_check::{Case, Outcome};
use crate::machine::{interrupts as host, smp};

pub(crate) const CASES: &[Case] = &[
    Case { name: "vmx-vmcall", run: |_| outcome(basics::vmcall()) },
    Case { name: "vmx-fault", run: |_| outcome(basics::fault()) },
    Case { name: "vmx-entry-failure", run: |_| outcome(basics::entry_failure()) },
    Case { name: "vmx-registers", run: |_| outcome(registers::all_registers()) },
    Case { name: "vmx-fields", run: |_| outcome(registers::fields()) },
    Case { name: "vmx-msr-bitmap", run: |_| outcome(registers::msr_bitmap()) },
    Case { name: "vmx-x2apic-msrs", run: |_| outcome(registers::x2apic_msrs()) },
    Case { name: "vmx-external-interrupt", run: |_| outcome(interrupts::external_interrupt()) },
    Case { name: "vmx-preemption-timer", run: |_| outcome(interrupts::preemption_timer()) },
    Case { name: "vmx-hlt", run: |_| outcome(interrupts::hlt()) },
    Case { name: "vmx-halted", run: |_| outcome(interrupts::halted()) },
    Case { name: "vmx-nmi", run: |_| outcome(interrupts::nmi()) },
    Case { name: "vmx-interrupt-window", run: |_| outcome(interrupts::interrupt_window()) },
    Case { name: "vmx-reinject", run: |_| outcome(interrupts::reinject()) },
    Case { name: "vmx-device", run: |_| outcome(memory::device()) },
    Case { name: "vmx-silent-page", run: |_| outcome(memory::silent_page()) },
    Case { name: "vmx-read-only-page", run: |_| outcome(memory::read_only_page()) },
    Case { name: "vmx-end-of-interrupt", run: |_| outcome(memory::end_of_interrupt()) },
    Case { name: "vmx-physical-apic", run: |_| outcome(memory::physical_apic()) },
    Case { name: "vmx-sipi", run: |_| outcome(cpus::sipi()) },
    Case { name: "vmx-wait-for-sipi", run: |_| outcome(cpus::wait_for_sipi()) },
    Case { name: "vmx-all-cpus", run: |_| outcome(cpus::all_cpus()) },
    Case { name: "vmx-migrate", run: |_| outcome(cpus::migrate()) },
];

/// Why a case did not pass.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Vmx(VmxError),
    Wrong(&'static str),
    Skip(&'static str),
}

impl From<VmxError> for Failure {
    fn from(error: VmxError) -> Self {
        Self::Vmx(error)
    }
}

fn outcome(result: Result<(), Failure>) -> Outcome {
    match result {
        Ok(()) => Outcome::Pass,
        Err(Failure::Vmx(VmxError::NoVmx)) => Outcome::Skip("no VMX"),
        Err(Failure::Vmx(VmxError::NoEpt)) => Outcome::Skip("no EPT"),
        Err(Failure::Vmx(VmxError::LockedByFirmware)) => Outcome::Skip("VMX is locked off"),
        Err(Failure::Skip(reason)) => Outcome::Skip(reason),
        Err(Failure::Wrong(what)) => Outcome::Fail(what),
        Err(Failure::Vmx(error)) => {
            log!("{error}");
            Outcome::Fail("the VMX layer failed, see the log")
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
    body: impl FnOnce(&mut Current<'_>, &mut Ept, &'static Context) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let capability = capability::enable()?;
    let mut ept = Ept::identity(&capability)?;
    let context = guest::context(smp::this_cpu() % guest::MAX_VCPUS);
    context.reset();
    let mut vcpu = Vcpu::new(capability, ept.pointer(), options)?;
    let mut current = vcpu.load()?;
    current.start(&Start::new(context, program, argument))?;
    body(&mut current, &mut ept, context)
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
        if !current.dispatch_interrupt(&exit) {
            log!("expected {reason:?}: {exit:?}");
            if exit.reason == Reason::Vmcall {
                log!("{:x?}", Hypercall::decode(current.general()));
            }
            return Err(Failure::Wrong("another exit came, see the log"));
        }
    }
}

/// Runs the guest until its next hypercall, and answers 0.
fn until_call(current: &mut Current<'_>) -> Result<Hypercall, Failure> {
    let exit = until(current, Reason::Vmcall)?;
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
