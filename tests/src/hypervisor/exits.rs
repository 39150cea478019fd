//! The loop of a vCPU: before entry, enter, after exit.

use apicv::{Exit, Vcpu, Wanted};
use vlapic_core::{
    Effect, Entry, EntryInput, Event, ExitOutcome, LvtEntry, Next, Register, Vector,
};
use vlapic_hal::wrap::{Fault, FaultInjector, When};
use vlapic_hal::{Vmcs, VmcsError};

use super::guest::{Answer, Op};
use super::{Hypervisor, KICK, NOTIFICATION, Run, WAKEUP};
use crate::common;
use crate::migrate::Doing;
use crate::model::{self, ExitReason, Shadow, VmExit, field};

/// More entries in a row than any guest operation needs.
const TOO_MANY_ENTRIES: usize = 64;
/// More events than there are vectors, each with an exit or two of its own.
const TOO_MANY_BOUNDARIES: usize = 2048;

impl<'m> Hypervisor<'m> {
    /// Brings a vCPU into guest mode. `false` if it sleeps, waits for its SIPI, or is on no CPU.
    ///
    /// # Panics
    /// If the processor refuses the VMCS, or the vCPU exits again and again without running.
    pub fn enter(&mut self, index: usize) -> bool {
        for _ in 0..TOO_MANY_ENTRIES {
            let Some(cpu) = self.vcpus[index].cpu else { return false };
            if self.vcpus[index].run == Run::Woken {
                self.halted(index);
            }
            if self.vcpus[index].run != Run::Ready && !self.take_events(index) {
                return false;
            }
            if self.machine.cores[cpu].in_guest() && !self.vcpus[index].kicked {
                return true;
            }
            if self.machine.cores[cpu].in_guest() {
                let exit = self.machine.cores[cpu].external_interrupt(KICK);
                self.after_outcome(index, exit);
                continue;
            }
            if !self.take_events(index) {
                return false;
            }
            self.turn(index);
        }
        unreachable!("vCPU {index} does not get to run");
    }

    /// One entry, and what the processor does before the first instruction.
    fn turn(&mut self, index: usize) {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        self.vcpus[index].kicked = false;
        let injects = self.vcpus[index].injects;
        let input = self.input(index);
        let entry = self.before_entry(index, input);
        let vcpu = &mut self.vcpus[index];
        let core = &mut self.machine.cores[cpu];
        vcpu.flushes += u64::from(entry.flush);
        if entry.next != Next::Enter {
            return;
        }
        if entry.flush && !self.config.ignores_flush {
            core.invept();
        }
        if let Some(vector) = injects {
            let information = 1 << 31 | 2 << 8 | u64::from(vector);
            write(core, field::ENTRY_INTERRUPTION_INFO, information);
        }
        write(core, field::GUEST_RFLAGS, 0x2 | u64::from(vcpu.interrupt_flag) << 9);
        let ticks = entry.exit_by.map_or(u64::from(u32::MAX), |time| time.saturating_sub(self.now));
        write(core, field::PREEMPTION_TIMER, ticks.min(u64::from(u32::MAX)));
        let entered = core.vm_entry().expect("controls that the processor accepts");
        vcpu.injects = None;
        let in_flight = vcpu.in_flight.take();
        assert_eq!(entered.injected, injects.or(in_flight), "what the driver said");
        vcpu.taken.extend(in_flight);
        if let Some(exit) = entered.exit {
            self.after_exit(index, exit, None);
        }
    }

    pub(super) fn input(&self, index: usize) -> EntryInput {
        let vcpu = &self.vcpus[index];
        EntryInput {
            now: self.now,
            cpu: vcpu.cpu.expect("a CPU") as u32,
            interruptible: vcpu.interrupt_flag,
            // What is in flight the driver finds in the VMCS by itself.
            injecting: vcpu.injects.is_some(),
        }
    }

    /// INIT, SIPI, NMI and the like. Whether the vCPU is to run.
    fn take_events(&mut self, index: usize) -> bool {
        while self.vcpus[index].injects.is_none()
            && self.vcpus[index].in_flight.is_none()
            && let Some(event) = self.vcpus[index].driver.apic_mut().take_event()
        {
            let vcpu = &mut self.vcpus[index];
            vcpu.events.push(event);
            match common::carry_out_event(event, &mut vcpu.interrupt_flag) {
                Some(Doing::Waiting) => vcpu.run = Run::WaitsForSipi,
                Some(_) => vcpu.run = Run::Ready,
                None => {}
            }
            if event == Event::Nmi {
                vcpu.injects = Some(2);
            }
        }
        self.vcpus[index].run == Run::Ready
    }

    /// Takes everything that the guest takes between two instructions.
    ///
    /// # Panics
    /// If that never ends.
    pub fn boundaries(&mut self, index: usize) {
        for _ in 0..TOO_MANY_BOUNDARIES {
            if !self.enter(index) {
                return;
            }
            let flag = self.vcpus[index].interrupt_flag;
            match self.core(index).boundary(flag, Shadow::None) {
                model::Outcome::Nothing => return,
                outcome => self.after_outcome(index, outcome),
            }
        }
        unreachable!("vCPU {index} does not get to its next instruction");
    }

    pub(super) fn after_outcome(&mut self, index: usize, outcome: model::Outcome) {
        match outcome {
            model::Outcome::Delivered(vector) => self.vcpus[index].taken.push(vector),
            model::Outcome::Exit(exit) => {
                let _ = self.after_exit(index, exit, None);
            }
            _ => {}
        }
    }

    /// Handles an exit; `op` is the guest's instruction, if it was one. Its answer if that is complete.
    pub(super) fn after_exit(&mut self, index: usize, exit: VmExit, op: Option<Op>) -> Answer {
        let vcpu = &mut self.vcpus[index];
        vcpu.exits += 1;
        vcpu.last_exit = Some(exit);
        let apic_exit = Exit { reason: exit.reason as u16, qualification: exit.qualification };
        match vcpu.driver.after_exit(apic_exit, self.now) {
            ExitOutcome::Done(effect) => {
                let svr = exit.reason == ExitReason::ApicWrite && exit.qualification == 0x0f0;
                self.carry_out(index, effect);
                if svr {
                    self.svr_was_written(index);
                }
                Answer::Done
            }
            ExitOutcome::Decode(access) => {
                let op = op.expect("an instruction made the access");
                assert_eq!(Some(access.offset), op.window_offset(), "the offset of the access");
                self.emulate(index, op)
            }
            _ => match (exit.reason, op) {
                (ExitReason::ExternalInterrupt, _) => {
                    self.host_interrupt(index, exit.interruption_info as u8);
                    Answer::Done
                }
                (_, Some(op)) => self.emulate(index, op),
                _ => Answer::Done,
            },
        }
    }

    /// The host's handler of the interrupt that ended the guest's turn.
    fn host_interrupt(&mut self, index: usize, vector: u8) {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        self.machine.cores[cpu].physical.end_of_interrupt();
        self.handle(cpu, vector);
    }

    pub(super) fn handle(&mut self, cpu: usize, vector: u8) {
        match vector {
            WAKEUP => self.wake_sleepers(cpu),
            KICK => {
                for index in 0..self.vcpus.len() {
                    if self.vcpus[index].cpu == Some(cpu) {
                        self.wake(index);
                    }
                }
            }
            NOTIFICATION => {}
            _ => unreachable!("the host has no handler for {vector:#x}"),
        }
    }

    /// What a write asked of the hypervisor.
    pub(super) fn carry_out(&mut self, index: usize, effect: Effect) {
        for (target, notify) in common::told(self.vm, index, &effect) {
            self.notify(target, notify);
        }
        if let Effect::EndOfInterrupt(vector) = effect {
            self.vcpus[index].broadcasts.push(vector.get());
        }
    }

    /// Asks the driver for another level of help.
    pub fn configure(&mut self, index: usize, wanted: Wanted) {
        self.leave(index);
        let (storage, capabilities) = (self.storage, self.capabilities);
        let addresses = storage.addresses(index);
        self.vcpus[index].grant = self.until_it_succeeds(index, |driver, vmcs| {
            driver.configure(&mut { vmcs }, &capabilities, wanted, &addresses)
        });
    }

    /// RESET of one vCPU, the bootstrap processor if it is the first.
    pub fn reset(&mut self, index: usize) {
        self.leave(index);
        self.vcpus[index].driver.apic_mut().reset(index == 0);
        self.vcpus[index].run = if index == 0 { Run::Ready } else { Run::WaitsForSipi };
        self.vcpus[index].interrupt_flag = true;
    }

    /// Calls the driver with the VMCS, the vCPU being outside guest mode.
    pub fn with_driver<R>(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut Vcpu<'m>, &mut model::Core<'m>, EntryInput) -> R,
    ) -> R {
        self.leave(index);
        let input = self.input(index);
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        call(&mut self.vcpus[index].driver, &mut self.machine.cores[cpu], input)
    }

    fn before_entry(&mut self, index: usize, input: EntryInput) -> Entry {
        let mut injected = None;
        let entry = self.until_it_succeeds(index, |driver, vmcs| {
            let entry = driver.before_entry(&mut { vmcs }, input)?;
            injected = injected.or(entry.injected);
            Ok::<_, VmcsError>(entry)
        });
        let vcpu = &mut self.vcpus[index];
        assert!(injected.is_none() || vcpu.in_flight.is_none(), "one injection overwrites another");
        vcpu.in_flight = vcpu.in_flight.or(injected.map(Vector::get));
        vcpu.entry = Some(Entry { injected, ..entry });
        entry
    }

    /// Makes ready for an entry and then does not enter.
    pub fn prepare_in_vain(&mut self, index: usize) {
        self.leave(index);
        if self.vcpus[index].cpu.is_some() && self.vcpus[index].run == Run::Ready {
            let input = self.input(index);
            let _ = self.before_entry(index, input);
        }
    }

    /// Makes a call of the driver's, with VMREADs and VMWRITEs that fail as configured, and repeats it until none does.
    pub(super) fn until_it_succeeds<T, E: core::fmt::Debug>(
        &mut self,
        index: usize,
        mut call: impl FnMut(&mut Vcpu<'m>, &mut dyn Vmcs) -> Result<T, E>,
    ) -> T {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        loop {
            let faulty = self.config.fault_in != 0 && self.machine.pick(4) == 0;
            let nth = match self.config.fault_in {
                0 => 1,
                bound => 1 + self.machine.pick(bound as usize) as u64,
            };
            let error = VmcsError::Instruction(26);
            let faults = [
                (When::Nth(nth), Fault::WriteVmcs { field: None, error }),
                (When::Nth(nth), Fault::ReadVmcs { field: None, error }),
            ];
            let core = &mut self.machine.cores[cpu];
            let driver = &mut self.vcpus[index].driver;
            if !faulty {
                return call(driver, core).expect("VMREAD and VMWRITE");
            }
            let mut vmcs = FaultInjector::new(core, faults);
            let result = call(driver, &mut vmcs);
            let struck = vmcs.struck();
            assert_eq!(
                result.is_err(),
                struck != 0,
                "a failure is passed on, and nothing else fails"
            );
            self.faults += struck;
            if let Ok(value) = result {
                return value;
            }
        }
    }

    /// An exit told of a write to SVR.
    pub(super) fn svr_was_written(&mut self, index: usize) {
        if let Some(contrast) = &mut self.contrast {
            let notify = contrast.svr_written(index, &self.slots[index], &self.storage.pending);
            self.notify(index, notify);
        }
    }

    /// Raises a local event of the vCPU's own.
    pub fn local_event(&mut self, index: usize, entry: LvtEntry) {
        let receipt = self.slots[index].local_event(entry);
        self.notify(index, receipt.notify);
        self.settle();
    }

    /// Whether the guest would see a register in its page without an exit: the page's word.
    pub fn page_word(&self, index: usize, register: Register) -> u32 {
        self.slots[index].page().read(register)
    }
}

fn write(core: &mut model::Core<'_>, encoding: u32, value: u64) {
    core.write(vlapic_hal::VmcsField::new(encoding), value).expect("a field that exists");
}
