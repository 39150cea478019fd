//! The loop of one vCPU on SVM, under plain emulation: every access to the APIC exits, and interrupts are injected.

mod access;

use core::sync::atomic::Ordering;

use vlapic_core::{Backend, Effect, Emulated, Entry, EntryInput, Event, Injection, Next as First};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::calls::{self, Answer};
use super::vcpu::Next;
use super::{HypervisorError, VirtualMachine};
use crate::guest::hypercall::Hypercall;
use crate::guest::{Program, Start, context};
use crate::machine::{cpu, interrupts, smp};
use crate::svm::interrupt::Event as Injected;
use crate::svm::state::Options;
use crate::svm::vcpu::Current;
use crate::svm::{Exit, Reason, Vcpu, capability};

/// One vCPU on the CPU that runs it.
struct Loop<'v> {
    machine: &'static VirtualMachine,
    index: usize,
    driver: Emulated<'static>,
    current: Current<'v>,
    program: Option<(Program, u64)>,
    /// The vCPU has been started: it is not waiting for its SIPI.
    started: bool,
}

/// Runs vCPU `index` of `machine` on this CPU until its program finishes or it is told to stop.
pub(super) fn run(
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
) -> Result<u64, HypervisorError> {
    let processor = capability::enable()?;
    // CR8 belongs to the emulated APIC: its accesses exit, which also keeps V_TPR still while an interrupt window is open
    // (see `Options`).
    let mut vcpu = Vcpu::new(processor, machine.memory_root(), Options::default());
    let Some(slot) = machine.direct_slots().get(index) else {
        return Err(HypervisorError::NotGranted(machine.config.level));
    };
    let mut driver = Emulated::new(slot, index == 0);
    driver.set_svr_writes(machine.config.svr_writes);
    driver.apic_mut().bind_upcall(&machine.pending[index]);

    machine.set_cpu(index, Some(smp::apic_id(cpu::this_cpu())));
    let mut this = Loop { machine, index, driver, current: vcpu.load(), program, started: false };
    if index == 0 {
        this.start(None);
    }
    let result = this.turns();
    machine.set_cpu(index, None);
    result
}

impl Loop<'_> {
    fn turns(&mut self) -> Result<u64, HypervisorError> {
        loop {
            if self.machine.is_stopped(self.index) {
                return Err(HypervisorError::Stopped);
            }
            self.machine.take_request(self.index);
            if let Next::Finish(value) = self.turn()? {
                return Ok(value);
            }
        }
    }

    /// One entry and one exit, or what comes first. Interrupts of this CPU are off from the driver's last look to the
    /// entry.
    fn turn(&mut self) -> Result<Next, HypervisorError> {
        let turn = interrupts::without(|| {
            let input = self.input(self.current.can_take_interrupt());
            let mut injection = Injection::default();
            let Ok(entry) = self.driver.before_entry(&mut injection, input);
            self.program(&injection);
            if entry.next != First::Enter || !self.started || self.machine.is_requested(self.index)
            {
                return Ok(Err(entry.next));
            }
            self.current.set_turn(longest(&entry, input.now));
            let exit = self.current.run()?;
            // The interrupt that ended the turn is the host's.
            self.current.dispatch_interrupt(&exit);
            Ok::<_, HypervisorError>(Ok(exit))
        })?;
        match turn {
            Ok(exit) => return self.after_exit(&exit),
            Err(First::TakeEvent) => {
                if let Some(event) = self.driver.apic_mut().take_event() {
                    self.carry_out_event(event);
                }
            }
            Err(_) if !self.started => self.sleep(None),
            Err(_) => {}
        }
        Ok(Next::Enter)
    }

    /// Puts into the control block what plain emulation wants of the entry.
    fn program(&mut self, injection: &Injection) {
        if let Some(vector) = injection.vector {
            self.current.inject(Injected::ExternalInterrupt(vector.get()));
        }
        self.current.set_interrupt_window(injection.window);
        self.current.set_task_priority(injection.cr8);
    }

    fn after_exit(&mut self, exit: &Exit) -> Result<Next, HypervisorError> {
        let [_, rcx, ..] = *self.current.general();
        self.current.reinject(exit);
        let next = self.handle(exit)?;
        if exit.reason != Reason::Interrupt {
            self.machine.count_exit(self.index);
            (self.machine.config.on_svm_exit)(self.machine, self.index, exit, rcx);
        }
        Ok(next)
    }

    fn handle(&mut self, exit: &Exit) -> Result<Next, HypervisorError> {
        match exit.reason {
            Reason::Interrupt | Reason::Nmi | Reason::VirtualInterrupt => {}
            Reason::Hlt => {
                self.current.skip_instruction(exit)?;
                self.halted();
            }
            Reason::Vmmcall => return self.hypercall(exit),
            Reason::Msr if exit.is_write() => self.write_msr(exit)?,
            Reason::Msr => self.read_msr(exit)?,
            Reason::ReadCr8 => self.read_cr8(exit)?,
            Reason::WriteCr8 => self.write_cr8(exit)?,
            Reason::NestedPageFault => self.nested_page_fault(exit)?,
            reason => {
                let (info_1, info_2) = (exit.info_1, exit.info_2);
                return Err(HypervisorError::UnknownSvmExit { reason, info_1, info_2 });
            }
        }
        Ok(Next::Enter)
    }

    /// What a write asked of the hypervisor.
    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ipi(message) => {
                self.machine.send(&message, Some(self.index));
            }
            Effect::EndOfInterrupt(vector) => {
                self.machine.eois[usize::from(vector.get())].fetch_add(1, Ordering::SeqCst);
            }
            // The next deadline comes with the next entry, and no control depends on the mode.
            _ => {}
        }
    }

    fn carry_out_event(&mut self, event: Event) {
        match event {
            Event::Init { waits: true } => self.started = false,
            Event::Init { waits: false } => self.start(None),
            Event::Startup { page } => self.start(Some(page)),
            Event::Nmi => self.current.inject(Injected::Nmi),
            // No SMM and no 8259 here.
            _ => {}
        }
    }

    /// Makes the vCPU's next entry its first.
    fn start(&mut self, page: Option<u8>) {
        self.started = true;
        match (page, self.program) {
            (Some(page), _) if self.machine.config.real_mode => self.current.start_at_sipi(page),
            (_, Some((program, argument))) => {
                self.current.start(&Start::new(context(self.index), program, argument));
            }
            _ => self.started = false,
        }
    }

    fn hypercall(&mut self, exit: &Exit) -> Result<Next, HypervisorError> {
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

    /// The guest executed HLT: sleeps until it has something to take.
    fn halted(&mut self) {
        while self.driver.block(self.input(self.current.interrupts_enabled()))
            && !self.machine.is_requested(self.index)
            && !self.machine.is_stopped(self.index)
        {
            let deadline = self.driver.apic().next_deadline();
            self.sleep(deadline);
        }
    }

    /// Waits until the vCPU is told of anything, or for `deadline`, in guest TSC ticks. Whatever is posted makes the poster
    /// tell it.
    fn sleep(&self, deadline: Option<u64>) {
        let told = || self.machine.is_requested(self.index) || self.machine.is_stopped(self.index);
        match deadline {
            None => interrupts::wait_unless(told),
            Some(deadline) => {
                while !told() && TscClock.now() < deadline {
                    core::hint::spin_loop();
                }
            }
        }
    }

    fn input(&self, interruptible: bool) -> EntryInput {
        EntryInput {
            now: TscClock.now(),
            cpu: smp::apic_id(cpu::this_cpu()),
            interruptible,
            injecting: self.current.has_injection(),
        }
    }
}

/// How long the entry's turn may last, in TSC ticks.
fn longest(entry: &Entry, now: u64) -> Option<u64> {
    entry.exit_by.map(|time| time.saturating_sub(now))
}
