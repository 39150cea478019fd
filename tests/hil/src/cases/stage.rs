//! A VM whose vCPUs run on CPUs of their own, while the case's CPU plays the devices.

use core::sync::atomic::{AtomicUsize, Ordering};

use vlapic_core::{Address, Delivery, Destination, Message, Outcome, Receipt, Trigger};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::{Failure, Mode, Setting, check, guests};
use crate::guest::{Context, Program, apic, cpu};
use crate::hypervisor::{AnySlot, Config, VirtualMachine};
use crate::machine::identity::{self, Machine};
use crate::machine::smp;

/// TSC ticks after which nothing more is waited for. On Bochs that is many seconds; elsewhere the TSC goes by real time,
/// whatever else the machine has to do.
fn patience() -> u64 {
    if identity::machine() == Machine::Bochs { 300_000_000 } else { 30_000_000_000 }
}

/// Words of each context that every program on a stage uses alike; cases have those below.
pub(super) const INDEX: usize = 13;
/// The program says how far it is.
pub(super) const PHASE: usize = 14;
/// The case says how far the program may go.
pub(super) const GO: usize = 15;

/// The start page of vCPUs but the first, whatever it means to the case.
pub(super) const START_PAGE: u8 = 8;

/// The running VM. Dropping it stops what still runs.
pub(super) struct Stage {
    pub(super) machine: &'static VirtualMachine,
    vcpus: usize,
    /// The CPU of vCPU 0; the others have the CPUs after it.
    first: AtomicUsize,
}

impl Stage {
    /// Runs `program` on all vCPUs; vCPU `n` is on CPU `n + 1`. All but the first have had INIT and SIPI.
    pub(super) fn run(config: Config, program: Program, argument: u64) -> Result<Self, Failure> {
        let stage = Self::new(config)?;
        stage.launch(program, argument)?;
        (1..stage.vcpus).for_each(|index| stage.start(index));
        Ok(stage)
    }

    /// The VM alone: the contexts can be prepared.
    pub(super) fn new(config: Config) -> Result<Self, Failure> {
        Ok(Self {
            machine: VirtualMachine::new(config)?,
            vcpus: config.vcpus,
            first: AtomicUsize::new(1),
        })
    }

    /// The VM alone, with vCPU 0 on this CPU: [`run_first`](Self::run_first) runs it.
    pub(super) fn with_first_here(config: Config) -> Result<Self, Failure> {
        Ok(Self {
            machine: VirtualMachine::new(config)?,
            vcpus: config.vcpus,
            first: AtomicUsize::new(0),
        })
    }

    /// Brings the vCPUs up: the first runs `program`, the others wait for INIT and SIPI.
    pub(super) fn launch(&self, program: Program, argument: u64) -> Result<(), Failure> {
        for index in 0..self.vcpus {
            self.context(index).word(INDEX).store(index as u64, Ordering::Relaxed);
            self.machine.set_program(index, program, argument);
            if self.elsewhere(index) {
                self.machine.start_on(index, self.cpu(index));
            }
        }
        (0..self.vcpus).filter(|&index| self.elsewhere(index)).try_for_each(|index| {
            // Present after RESET: from then on it receives messages.
            let up = || self.slot(index).present() || self.has_ended(index);
            check(patient(up), "a vCPU does not come up")?;
            if self.has_ended(index) && self.context(index).word(PHASE).load(Ordering::Acquire) == 0
            {
                self.machine.join(index, self.cpu(index))?;
            }
            Ok(())
        })
    }

    /// Runs `program` on vCPU 0, on this CPU, until it ends with 0.
    pub(super) fn run_first(&self, program: Program, argument: u64) -> Result<(), Failure> {
        self.machine.set_program(0, program, argument);
        super::equal("line of the first program", self.machine.run_here(0)?, 0u64)
    }

    pub(super) fn vcpus(&self) -> usize {
        self.vcpus
    }

    fn cpu(&self, index: usize) -> usize {
        self.first.load(Ordering::Relaxed) + index
    }

    fn elsewhere(&self, index: usize) -> bool {
        self.cpu(index) != 0
    }

    /// Moves the only vCPU from CPU 1 to CPU 2, or back. Says whether it still runs.
    pub(super) fn migrate(&self) -> bool {
        let from = self.cpu(0);
        let to = 3 - from;
        let moved = self.machine.migrate(0, from, to);
        if moved {
            self.first.store(to, Ordering::Relaxed);
        }
        moved
    }

    pub(super) fn has_ended(&self, index: usize) -> bool {
        smp::is_idle(self.cpu(index))
    }

    /// INIT and SIPI.
    pub(super) fn start(&self, index: usize) {
        self.send_to(index, Delivery::Init);
        self.send_to(index, Delivery::Startup { page: START_PAGE });
    }

    pub(super) fn context(&self, index: usize) -> &'static Context {
        self.machine.context(index)
    }

    pub(super) fn slot(&self, index: usize) -> AnySlot {
        self.machine.slot(index)
    }

    /// Sends from a device to one vCPU, and says whether it was accepted.
    pub(super) fn send_to(&self, index: usize, delivery: Delivery) -> bool {
        let destination = Destination::Physical(Address::Narrow(index as u8));
        self.machine.send(&Message::new(delivery, destination), None) == 1
    }

    /// Posts a vector to a vCPU and tells it.
    pub(super) fn post(&self, index: usize, vector: u8, trigger: Trigger) -> Receipt {
        let receipt = self.slot(index).request(vector, trigger);
        self.machine.carry_out(index, receipt);
        receipt
    }

    /// Posts a vector that must be accepted.
    pub(super) fn post_accepted(&self, index: usize, vector: u8) -> Result<(), Failure> {
        let receipt = self.post(index, vector, Trigger::Edge);
        check(receipt.outcome == Outcome::Accepted, "a post was refused")
    }

    pub(super) fn has_come_to(&self, index: usize, phase: u64) -> bool {
        self.context(index).word(PHASE).load(Ordering::Acquire) >= phase
    }

    /// Waits until the program of a vCPU has come to `phase`.
    pub(super) fn wait_phase(&self, index: usize, phase: u64) -> Result<(), Failure> {
        let there = || self.has_come_to(index, phase) || self.has_ended(index);
        check(patient(there), "a program does not come to its phase")?;
        if !self.has_come_to(index, phase) {
            let value = self.machine.join(index, self.cpu(index))?;
            return Err(Failure::Differs { what: "program ended", expected: 0, seen: value });
        }
        Ok(())
    }

    /// Lets the program of a vCPU go on.
    pub(super) fn go(&self, index: usize, phase: u64) {
        self.context(index).word(GO).store(phase, Ordering::Release);
    }

    /// Waits until vCPU `index` has taken `vector` so many times.
    pub(super) fn wait_count(&self, index: usize, vector: u8, count: u32) -> Result<(), Failure> {
        let context = self.context(index);
        patient(|| context.count(vector) >= count);
        super::equal("interrupts taken", context.count(vector), count)
    }

    /// Waits for the program of a vCPU, which must end with 0.
    pub(super) fn finish(&self, index: usize) -> Result<(), Failure> {
        check(patient(|| self.has_ended(index)), "a program does not end")?;
        super::equal("line of a program", self.machine.join(index, self.cpu(index))?, 0u64)
    }

    /// [`finish`](Self::finish) for all vCPUs on other CPUs.
    pub(super) fn finish_all(&self) -> Result<(), Failure> {
        (0..self.vcpus)
            .filter(|&index| self.elsewhere(index))
            .try_for_each(|index| self.finish(index))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for index in 0..self.vcpus {
            if self.elsewhere(index) && !self.has_ended(index) {
                self.machine.stop(index);
                smp::wait_idle(self.cpu(index));
            }
        }
    }
}

/// Runs a program with the mode as its argument on one vCPU on this CPU. It must end with 0.
pub(super) fn alone(setting: Setting, program: Program) -> Result<(), Failure> {
    let stage = Stage::with_first_here(Config::new(setting.level, 1))?;
    stage.run_first(program, guests::argument(setting.mode))
}

/// A plain program: takes what comes until it is told to go. Its argument is [`taker_argument`]'s.
pub(super) extern "C" fn taker(context: &'static Context, argument: u64) -> u64 {
    if guests::enter_mode(context, guests::mode(argument)).is_err()
        || apic::write(context, apic::SVR, argument >> 32).is_err()
    {
        return 1;
    }
    cpu::interrupts_on();
    reach(context, 1);
    while context.word(GO).load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    0
}

/// For [`taker`]: the mode, and what it writes to SVR.
pub(super) fn taker_argument(mode: Mode, svr: u32) -> u64 {
    guests::argument(mode) | u64::from(svr) << 32
}

/// A program says that it has come to `phase`.
pub(super) fn reach(context: &Context, phase: u64) {
    context.word(PHASE).store(phase, Ordering::Release);
}

/// A program waits until its case lets it go to `phase`.
pub(super) fn wait_go(context: &Context, phase: u64) {
    while context.word(GO).load(Ordering::Acquire) < phase {
        core::hint::spin_loop();
    }
}

/// Waits for something that another CPU does, and says whether it came.
pub(super) fn patient(mut done: impl FnMut() -> bool) -> bool {
    let (start, patience) = (TscClock.now(), patience());
    loop {
        if done() {
            return true;
        }
        if TscClock.now().wrapping_sub(start) > patience {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Lets `ticks` of the TSC pass.
pub(super) fn pause(ticks: u64) {
    let start = TscClock.now();
    while TscClock.now().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}
