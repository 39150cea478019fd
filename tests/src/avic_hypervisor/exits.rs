//! The loop of a vCPU: before entry, enter, after exit.

use avic::Exit;
use vlapic_core::{Effect, EntryInput, Event, ExitOutcome, Next};

use super::guest::Answer;
use super::vcpu::{NESTED_CR3, View};
use super::{Broken, Hypervisor, KICK, LOG, Run, Storage};
use crate::avic_model::{GuestOp, Mapping, Outcome, VmExit, code, field};
use crate::common;
use crate::migrate::Doing;

/// More entries in a row than any guest operation needs.
const TOO_MANY_ENTRIES: usize = 64;

/// EVENTINJ: an NMI.
const INJECT_NMI: u64 = 1 << 31 | 2 << 8 | 2;

/// What came of making ready for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepared {
    /// VMRUN.
    Enter,
    /// Look for events, and make ready once more.
    Again,
    /// The others have to go through their entry work first.
    Peers,
}

/// What came of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handled {
    /// The instruction is done, or there was none.
    Done(Answer),
    /// The instruction is to be executed again.
    Retry,
}

impl Hypervisor<'_> {
    /// Brings a vCPU into guest mode. `false` if it sleeps, waits for its SIPI, or is on no CPU.
    ///
    /// # Panics
    /// If the processor refuses the VMCB, or the vCPU exits again and again without running.
    pub fn enter(&mut self, index: usize) -> bool {
        for _ in 0..TOO_MANY_ENTRIES {
            let Some(cpu) = self.vcpus[index].cpu else { return false };
            if self.machine.cores[cpu].in_guest() {
                if !self.vcpus[index].kicked {
                    return true;
                }
                self.leave(index);
            }
            self.host_interrupts(cpu);
            if self.vcpus[index].run == Run::Woken {
                self.halted(index);
            }
            if !self.take_events(index) {
                return false;
            }
            self.vcpus[index].kicked = false;
            match self.prepare(index) {
                Prepared::Enter => self.vmrun(index),
                Prepared::Again => {}
                Prepared::Peers => {
                    for other in (0..self.vcpus.len()).filter(|&other| other != index) {
                        self.leave(other);
                    }
                }
            }
        }
        unreachable!("vCPU {index} does not get to run");
    }

    /// INIT, SIPI, NMI and the like. Whether the vCPU is to run.
    pub(super) fn take_events(&mut self, index: usize) -> bool {
        while !self.vcpus[index].injects_nmi
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
            vcpu.injects_nmi |= event == Event::Nmi;
        }
        self.vcpus[index].run == Run::Ready
    }

    pub(super) fn input(&self, index: usize) -> EntryInput {
        let vcpu = &self.vcpus[index];
        EntryInput {
            now: self.now,
            cpu: self.machine.cores[vcpu.cpu.expect("a CPU")].id(),
            interruptible: vcpu.interrupt_flag,
            injecting: vcpu.injects_nmi,
        }
    }

    /// The driver's part of an entry.
    pub(super) fn prepare(&mut self, index: usize) -> Prepared {
        let input = self.input(index);
        let vcpu = &mut self.vcpus[index];
        let vmcb = vcpu.vmcb.as_mut().expect("a VMCB at hand");
        let Ok(entry) = vcpu.driver.before_entry(&mut View(vmcb), input);
        if let Some(vector) = entry.injected {
            assert_eq!(vcpu.in_flight, None, "one injection overwrites another");
            vcpu.in_flight = Some(vector.get());
        }
        vcpu.exit_by = entry.exit_by;
        match entry.next {
            Next::Enter => {
                // This hypervisor's timer for "at once".
                vcpu.kicked |= entry.exit_by.is_some_and(|time| time <= input.now);
                Prepared::Enter
            }
            Next::UnmapWindow => {
                self.unmap_window();
                Prepared::Again
            }
            Next::KickOthers if self.config.broken == Broken::IgnoresPeers => Prepared::Again,
            Next::KickOthers => Prepared::Peers,
            _ => Prepared::Again,
        }
    }

    /// VMRUN.
    pub(super) fn vmrun(&mut self, index: usize) {
        let vcpu = &mut self.vcpus[index];
        let cpu = vcpu.cpu.expect("a CPU");
        let mut vmcb = vcpu.vmcb.take().expect("a VMCB at hand");
        if vcpu.injects_nmi {
            vcpu.injects_nmi = false;
            if !vcpu.driver.pend_nmi(&mut View(&mut vmcb)) {
                vmcb.set64(field::EVENT_INJECTION, INJECT_NMI);
            }
        }
        let check = avic::check(&View(&mut vmcb), &self.capabilities);
        assert_eq!(check, Ok(()), "the VMCB of vCPU {index}");
        let flags = vmcb.get64(field::RFLAGS) & !(1 << 9);
        vmcb.set64(field::RFLAGS, flags | u64::from(vcpu.interrupt_flag) << 9);
        if self.config.broken == Broken::NeverFlushes {
            vmcb.set32(field::TLB_CONTROL, 0);
        }
        let core = &mut self.machine.cores[cpu];
        let entered = core.vmrun(vmcb).expect("a VMCB that the processor accepts");
        let vector = entered.injected.filter(|event| event.kind == 0).map(|event| event.vector);
        assert_eq!(vector, vcpu.in_flight.take(), "what the driver said");
        vcpu.taken.extend(vector);
    }

    /// Takes everything that the guest takes between two instructions.
    pub fn boundaries(&mut self, index: usize) {
        while self.enter(index) {
            if let Some(vector) = self.boundary(index) {
                self.vcpus[index].taken.push(vector);
            } else if self.vcpus[index].cpu.is_some_and(|cpu| self.is_quiet(cpu)) {
                return;
            }
        }
    }

    fn is_quiet(&mut self, cpu: usize) -> bool {
        let quiet = self.machine.cores[cpu].in_guest();
        quiet && (!self.prompt || self.machine.doorbells().is_empty())
    }

    /// One instruction boundary of a guest that runs: the vector it took, if it took one.
    pub(super) fn boundary(&mut self, index: usize) -> Option<u8> {
        let flag = self.vcpus[index].interrupt_flag;
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        match self.machine.cores[cpu].boundary(flag, false) {
            Outcome::Delivered(vector) => return Some(vector),
            Outcome::DeliveredNmi => {
                let _ = self.machine.cores[cpu].run(GuestOp::Iret);
            }
            Outcome::Exit(exit) => {
                let _ = self.after_exit(index, exit, None);
            }
            _ => {}
        }
        None
    }

    /// Handles an exit; `op` is the guest's instruction, if it was one.
    pub(super) fn after_exit(
        &mut self,
        index: usize,
        exit: VmExit,
        op: Option<GuestOp>,
    ) -> Handled {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        let now = self.now;
        let mut vmcb = self.machine.cores[cpu].take_vmcb().expect("an exit leaves a VMCB");
        let vcpu = &mut self.vcpus[index];
        vcpu.exits += 1;
        vcpu.last_exit = Some(exit);
        let mut view = View(&mut vmcb);
        let reason = Exit::of(&view);
        let outcome = vcpu.driver.after_exit(&mut view, reason, now);
        vcpu.vmcb = Some(vmcb);
        let result = self.after_outcome(index, exit, op, outcome);
        if result != Handled::Retry && op.and_then(written) == Some(SVR) {
            self.svr_was_written(index);
        }
        result
    }

    fn after_outcome(
        &mut self,
        index: usize,
        exit: VmExit,
        op: Option<GuestOp>,
        outcome: ExitOutcome,
    ) -> Handled {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        let emulate = |hypervisor: &mut Self| match op {
            Some(op) => Handled::Done(hypervisor.emulate(index, op)),
            None => Handled::Done(Answer::Done),
        };
        match outcome {
            ExitOutcome::Done(effect) => {
                let knobs = self.config.knobs;
                assert!(exit.trap || !knobs.level_eoi_is_a_trap, "what is done needs no decoding");
                self.carry_out(index, effect);
                if exit.trap { Handled::Done(Answer::Done) } else { Handled::Retry }
            }
            ExitOutcome::Decode(access) => {
                assert!(!exit.trap, "what was not done is decoded");
                assert_eq!(op.and_then(slot_of), Some(access.offset), "the offset of the access");
                emulate(self)
            }
            ExitOutcome::Msr { .. } => {
                assert!(!exit.trap, "what was not done is decoded");
                emulate(self)
            }
            _ => match exit.code {
                code::NESTED_PAGE_FAULT if self.map_window(exit.info_2) => Handled::Retry,
                code::INTR => {
                    self.host_interrupts(cpu);
                    Handled::Done(Answer::Done)
                }
                _ => emulate(self),
            },
        }
    }

    /// An exit told of a write to SVR.
    fn svr_was_written(&mut self, index: usize) {
        let slot = self.slot(index);
        if let Some(contrast) = &mut self.contrast {
            let notify = contrast.svr_written(index, slot, &self.storage.pending);
            self.notify(index, notify);
        }
    }

    /// After a nested page fault: maps the register window if it was missing and may be mapped.
    fn map_window(&mut self, address: u64) -> bool {
        let missing = address & !0xfff == WINDOW && !self.storage.window.is_mapped();
        if !missing || !self.storage.window.map() {
            return false;
        }
        let mapping = Mapping { page: Storage::BEHIND_WINDOW, writable: true };
        self.machine.nested().map(NESTED_CR3, WINDOW, mapping);
        true
    }

    /// Takes the register window away, from the tables and from every TLB.
    pub(super) fn unmap_window(&mut self) {
        if self.config.broken != Broken::KeepsWindow {
            self.machine.nested().unmap(NESTED_CR3, WINDOW);
        }
        if self.config.broken != Broken::KeepsTranslations {
            for core in &mut self.machine.cores {
                core.flush_tlb(None);
            }
        }
        self.storage.window.unmapped();
    }

    /// The host on `cpu` takes what interrupts it has.
    pub(super) fn host_interrupts(&mut self, cpu: usize) {
        while let Some(vector) = self.machine.cores[cpu].host_interrupt() {
            match vector {
                KICK => {}
                LOG => self.read_log(),
                _ => unreachable!("the host has no handler for {vector:#x}"),
            }
        }
    }

    /// What a write asked of the hypervisor.
    pub(super) fn carry_out(&mut self, index: usize, effect: Effect) {
        let ignored = self.config.broken == Broken::IgnoresAnnouncements
            && matches!(effect, Effect::Announce(_));
        if ignored {
            return;
        }
        for (target, notify) in common::told(self.shared.vm(), index, &effect) {
            self.notify(target, notify);
        }
        if let Effect::EndOfInterrupt(vector) = effect {
            self.vcpus[index].broadcasts.push(vector.get());
        }
    }

    /// RESET of one vCPU, the bootstrap processor if it is the first.
    pub fn reset(&mut self, index: usize) {
        self.leave(index);
        self.vcpus[index].driver.apic_mut().reset(index == 0);
        self.vcpus[index].run = if index == 0 { Run::Ready } else { Run::WaitsForSipi };
        self.vcpus[index].interrupt_flag = true;
    }
}

/// Where guests find the register window after reset.
pub(super) const WINDOW: u64 = vlapic_core::ApicBase::DEFAULT_ADDRESS;

const SVR: u16 = 0x0f0;

/// The register that is written, in either mode.
fn written(op: GuestOp) -> Option<u16> {
    match op {
        GuestOp::Write { .. } => slot_of(op),
        GuestOp::Wrmsr { msr: msr @ 0x800..=0x8ff, .. } => Some((msr as u16 & 0xff) << 4),
        _ => None,
    }
}

/// The register that an access is to.
fn slot_of(op: GuestOp) -> Option<u16> {
    match op {
        GuestOp::Read { address, .. } | GuestOp::Write { address, .. } => {
            Some(address as u16 & 0xff0)
        }
        _ => None,
    }
}
