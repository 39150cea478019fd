//! A VM whose vCPUs run on CPUs of their own, while the case's CPU plays the devices.

use core::sync::atomic::Ordering;

use vlapic_core::{Address, Delivery, Destination, Message, Outcome, Receipt, Slot, Trigger};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::{Failure, Mode, check, guests};
use crate::guest::{Context, Program, apic, cpu};
use crate::hypervisor::{Config, VirtualMachine};
use crate::machine::smp;

/// TSC ticks after which nothing more is waited for. On an emulator that is many seconds.
pub(super) const PATIENCE: u64 = 300_000_000;

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
        Ok(Self { machine: VirtualMachine::new(config)?, vcpus: config.vcpus })
    }

    /// Brings the vCPUs up: the first runs `program`, the others wait for INIT and SIPI.
    pub(super) fn launch(&self, program: Program, argument: u64) -> Result<(), Failure> {
        for index in 0..self.vcpus {
            self.context(index).word(INDEX).store(index as u64, Ordering::Relaxed);
            self.machine.set_program(index, program, argument);
            self.machine.start_on(index, index + 1);
        }
        (0..self.vcpus).try_for_each(|index| {
            let up = || self.machine.is_up(index) || smp::is_idle(index + 1);
            check(patient(up), "a vCPU does not come up")?;
            if smp::is_idle(index + 1)
                && self.context(index).word(PHASE).load(Ordering::Acquire) == 0
            {
                self.machine.join(index, index + 1)?;
            }
            Ok(())
        })
    }

    /// INIT and SIPI.
    pub(super) fn start(&self, index: usize) {
        self.send_to(index, Delivery::Init);
        self.send_to(index, Delivery::Startup { page: START_PAGE });
    }

    pub(super) fn context(&self, index: usize) -> &'static Context {
        self.machine.context(index)
    }

    pub(super) fn slot(&self, index: usize) -> &'static Slot<'static, apicv::Posting<'static>> {
        &self.machine.slots[index]
    }

    /// Sends from a device to one vCPU, and says whether it was accepted.
    pub(super) fn send_to(&self, index: usize, delivery: Delivery) -> bool {
        let destination = Destination::Physical(Address::Narrow(index as u8));
        self.machine.send(&Message { delivery, destination }, None) == 1
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

    /// Waits until the program of a vCPU has come to `phase`.
    pub(super) fn wait_phase(&self, index: usize, phase: u64) -> Result<(), Failure> {
        let word = self.context(index).word(PHASE);
        let there = || word.load(Ordering::Acquire) >= phase || smp::is_idle(index + 1);
        check(patient(there), "a program does not come to its phase")?;
        if word.load(Ordering::Acquire) < phase {
            let value = self.machine.join(index, index + 1)?;
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
        check(patient(|| smp::is_idle(index + 1)), "a program does not end")?;
        super::equal("program's result", self.machine.join(index, index + 1)?, 0u64)
    }

    /// [`finish`](Self::finish) for all vCPUs.
    pub(super) fn finish_all(&self) -> Result<(), Failure> {
        (0..self.vcpus).try_for_each(|index| self.finish(index))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for index in 0..self.vcpus {
            if !smp::is_idle(index + 1) {
                self.machine.stop(index);
                smp::wait_idle(index + 1);
            }
        }
    }
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
    let start = TscClock.now();
    loop {
        if done() {
            return true;
        }
        if TscClock.now().wrapping_sub(start) > PATIENCE {
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
