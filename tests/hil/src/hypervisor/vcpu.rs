//! The loop of one vCPU.

use core::sync::atomic::Ordering;

use apicv::{Capabilities, Exit, Vcpu};
use vlapic_core::{Effect, EntryInput, Event, ExitOutcome, Next as First};
use vlapic_hal::Clock;
use vlapic_hal::x86::{Msrs, TscClock};

use super::calls::{self, Answer};
use super::vm::{self, VirtualMachine};
use super::{HypervisorError, meter, sleep};
use crate::guest::hypercall::Hypercall;
use crate::guest::{Program, Start, context};
use crate::machine::identity::{self, Machine};
use crate::machine::{cpu, interrupts, smp};
use crate::vmx::interrupt::Event as Injection;
use crate::vmx::state::Options;
use crate::vmx::vcpu::Current;
use crate::vmx::{self, Capability, Reason, capability};

/// Bochs defect D2: after an entry with the guest's IF = 0 a physical interrupt neither exits nor is processed as posted
/// until IF changes. There, no turn that begins with IF = 0 is longer than this many TSC ticks.
const D2_LONGEST_TURN: u64 = 2_000_000;

/// One vCPU on the CPU that runs it.
pub(super) struct Loop<'v> {
    pub(super) machine: &'static VirtualMachine,
    pub(super) index: usize,
    pub(super) driver: Vcpu<'static>,
    pub(super) current: Current<'v>,
    program: Option<(Program, u64)>,
    /// The vCPU has been started: it has a program to run and is not waiting for its SIPI.
    started: bool,
}

/// What comes after an exit.
pub(super) enum Next {
    Enter,
    Finish(u64),
}

/// A vCPU that no CPU has loaded.
pub(super) struct Parked {
    vcpu: vmx::Vcpu,
    driver: Vcpu<'static>,
    program: Option<(Program, u64)>,
    started: bool,
}

/// Runs vCPU `index` of `machine` on this CPU until its program finishes, it is told to stop, or it moves: then there is no
/// result yet.
pub(super) fn run(
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
) -> Result<Option<u64>, HypervisorError> {
    let processor = capability::enable()?;
    // Once per machine: what the processor can do.
    // SAFETY: this runs at CPL 0, and VMX has just been switched on, so the capability MSRs exist.
    let msrs = unsafe { Msrs::new() };
    let capabilities = Capabilities::detect(&msrs).map_err(|_| vmx::VmxError::NoVmx)?;

    let moved = match machine.take_parked(index) {
        Some(vm::Parked::VtX(parked)) => Some(parked),
        _ => None,
    };
    let begins = moved.is_none() && index == 0;
    let Parked { mut vcpu, driver, program, started } = match moved {
        Some(parked) => parked,
        None => make(machine, index, program, processor, &capabilities)?,
    };
    let current = vcpu.load()?;
    machine.set_cpu(index, Some(smp::apic_id(cpu::this_cpu())));
    let this = Loop { machine, index, driver, current, program, started };
    let (result, driver, started) = this.run(begins);
    machine.set_cpu(index, None);
    if matches!(result, Ok(None)) {
        // Posts need not tell anybody until it runs again.
        driver.apic().slot().inbox().preempt();
        machine.park(index, vm::Parked::VtX(Parked { vcpu, driver, program, started }));
    }
    result
}

/// Once per vCPU: an APIC after RESET, and a VMCS programmed for as much help as the level wants.
fn make(
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
    processor: Capability,
    capabilities: &Capabilities,
) -> Result<Parked, HypervisorError> {
    let options = Options {
        cr8_exiting: false,
        unrestricted: machine.config.real_mode,
        ..Options::default()
    };
    let mut vcpu = vmx::Vcpu::new(processor, machine.memory_root(), options)?;
    let mut driver = Vcpu::new(&machine.slots[index], index == 0);
    driver.set_svr_writes(machine.config.svr_writes);
    driver.apic_mut().bind_upcall(&machine.pending[index]);
    for msr in vmx::msr_bitmap::SWITCHED {
        vm::msr_bitmap(index).intercept_read(msr, false);
        vm::msr_bitmap(index).intercept_write(msr, false);
    }
    let wanted = machine.config.level.wanted();
    let mut current = vcpu.load()?;
    let grant =
        driver.configure(current.vmcs.hal(), capabilities, wanted, &vm::addresses(index))?;
    drop(current);
    if !grant.features().contains_all(wanted.features()) {
        return Err(HypervisorError::NotGranted(machine.config.level));
    }
    Ok(Parked { vcpu, driver, program, started: false })
}

impl Loop<'_> {
    /// Runs the vCPU, from its first instruction if it `begins`; then takes it apart.
    fn run(mut self, begins: bool) -> (Result<Option<u64>, HypervisorError>, Vcpu<'static>, bool) {
        let begun = if begins { self.start(None) } else { Ok(()) };
        let result = begun.and_then(|()| self.turns());
        self.machine.leave_exits(self.index, self.current.exits());
        (result, self.driver, self.started)
    }

    /// Turns until there is a result, or the vCPU has to leave this CPU.
    fn turns(&mut self) -> Result<Option<u64>, HypervisorError> {
        loop {
            if self.machine.is_stopped(self.index) {
                return Err(HypervisorError::Stopped);
            }
            if self.machine.take_leave(self.index) {
                return Ok(None);
            }
            self.machine.take_request(self.index);
            if let Next::Finish(value) = self.turn()? {
                return Ok(Some(value));
            }
        }
    }

    /// One entry and one exit, or what comes first. Interrupts of this CPU are off from the driver's last look to the
    /// entry.
    fn turn(&mut self) -> Result<Next, HypervisorError> {
        let turn = interrupts::without(|| {
            let input = EntryInput {
                now: TscClock.now(),
                cpu: smp::apic_id(cpu::this_cpu()),
                interruptible: self.current.can_take_interrupt()?,
                injecting: self.current.has_injection()?,
            };
            let vmcs = self.current.vmcs.hal();
            let entry = meter::measured(|| self.driver.before_entry(vmcs, input))?;
            if entry.next != First::Enter || !self.started || self.machine.is_requested(self.index)
            {
                return Ok(Err(entry.next));
            }
            if entry.flush {
                self.current.invalidate_translations();
            }
            self.set_timer(entry.exit_by)?;
            let exit = self.current.run()?;
            // The interrupt that ended the turn is the host's.
            self.current.dispatch_interrupt(&exit);
            Ok::<_, HypervisorError>(Ok(exit))
        })?;
        match turn {
            Ok(exit) => return self.after_exit(&exit),
            Err(First::TakeEvent) => {
                if let Some(event) = self.driver.apic_mut().take_event() {
                    self.carry_out_event(event)?;
                }
            }
            Err(_) if !self.started => sleep::until_told(self),
            Err(_) => {}
        }
        Ok(Next::Enter)
    }

    fn after_exit(&mut self, exit: &vmx::Exit) -> Result<Next, HypervisorError> {
        (self.machine.config.at_exit)(self.machine, self.index, exit, &mut self.current);
        let [_, rcx, ..] = *self.current.general();
        if exit.idt_vectoring.is_valid() {
            self.current.reinject(exit)?;
        }
        let apic_exit = Exit { reason: exit.reason.number(), qualification: exit.qualification };
        let now = TscClock.now();
        let next = match meter::measured(|| self.driver.after_exit(apic_exit, now)) {
            ExitOutcome::Done(effect) => self.carry_out(effect).map(|()| Next::Enter),
            ExitOutcome::Decode(access) => {
                self.register_window(access.offset).map(|()| Next::Enter)
            }
            _ => self.other_exit(exit),
        }?;
        if !matches!(exit.reason, Reason::ExternalInterrupt | Reason::PreemptionTimer) {
            self.machine.count_exit(self.index);
            (self.machine.config.on_exit)(self.machine, self.index, exit, rcx);
        }
        Ok(next)
    }

    /// Exits that have nothing to do with the APIC, or only in part.
    fn other_exit(&mut self, exit: &vmx::Exit) -> Result<Next, HypervisorError> {
        match exit.reason {
            Reason::ExternalInterrupt
            | Reason::ExceptionOrNmi
            | Reason::PreemptionTimer
            | Reason::InterruptWindow => {}
            Reason::Hlt => {
                self.current.skip_instruction(exit)?;
                sleep::halted(self)?;
            }
            Reason::Vmcall => return self.hypercall(exit),
            Reason::Rdmsr => self.read_msr(exit)?,
            Reason::Wrmsr => self.write_msr(exit)?,
            Reason::ControlRegister => self.control_register(exit)?,
            Reason::EptViolation => self.ept_violation(exit)?,
            reason => {
                let qualification = exit.qualification;
                return Err(HypervisorError::UnknownExit { reason, qualification });
            }
        }
        Ok(Next::Enter)
    }

    /// What a write asked of the hypervisor.
    pub(super) fn carry_out(&mut self, effect: Effect) -> Result<(), HypervisorError> {
        match effect {
            Effect::Ipi(message) => {
                self.machine.send(&message, Some(self.index));
            }
            Effect::EndOfInterrupt(vector) => {
                self.machine.eois[usize::from(vector.get())].fetch_add(1, Ordering::SeqCst);
            }
            // The next deadline comes with the next entry, and so do the controls of another mode. The window stays where
            // it is; its mapping is only used in xAPIC mode.
            _ => {}
        }
        Ok(())
    }

    fn carry_out_event(&mut self, event: Event) -> Result<(), HypervisorError> {
        match event {
            Event::Init { waits: true } => self.started = false,
            Event::Init { waits: false } => self.start(None)?,
            Event::Startup { page } => self.start(Some(page))?,
            Event::Nmi => self.current.inject(Injection::Nmi)?,
            // No SMM and no 8259 here.
            _ => {}
        }
        Ok(())
    }

    /// Makes the vCPU's next entry its first.
    fn start(&mut self, page: Option<u8>) -> Result<(), HypervisorError> {
        self.started = true;
        match (page, self.program) {
            (Some(page), _) if self.machine.config.real_mode => self.current.start_at_sipi(page)?,
            (_, Some((program, argument))) => {
                let start = Start::new(context(self.index), program, argument);
                self.current.start(&start)?;
            }
            _ => self.started = false,
        }
        Ok(())
    }

    fn hypercall(&mut self, exit: &vmx::Exit) -> Result<Next, HypervisorError> {
        self.current.skip_instruction(exit)?;
        let call = Hypercall::decode(self.current.general());
        match calls::answer(self.machine, self.index, call)? {
            Answer::Finish(value) => Ok(Next::Finish(value)),
            Answer::Value(value) => {
                self.current.general()[0] = value;
                Ok(Next::Enter)
            }
        }
    }

    /// Arms the VMX-preemption timer so that the guest exits by `exit_by`.
    fn set_timer(&mut self, exit_by: Option<u64>) -> Result<(), HypervisorError> {
        let now = TscClock.now();
        let d2 = identity::machine() == Machine::Bochs && !self.current.interrupts_enabled()?;
        let d2 = d2.then(|| now + D2_LONGEST_TURN);
        let exit_by = match (exit_by, d2) {
            (Some(driver), Some(bound)) => Some(driver.min(bound)),
            (driver, bound) => driver.or(bound),
        };
        let shift = self.current.capability().preemption_timer_shift();
        let ticks = exit_by.map(|time| {
            // One more, since the timer starts at a change of its TSC bit.
            u32::try_from((time.saturating_sub(now) >> shift) + 1).unwrap_or(u32::MAX)
        });
        self.current.set_preemption_timer(ticks)?;
        Ok(())
    }
}
