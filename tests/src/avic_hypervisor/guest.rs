//! What the guest does.

use vlapic_core::{IA32_APIC_BASE, Mode, Register, Width};

use super::exits::Handled;
use super::vcpu::NESTED_CR3;
use super::{Hypervisor, Run, Storage};
use crate::avic_model::{GuestOp, Mapping, Outcome};
use crate::common;

pub(super) use crate::hypervisor::{Answer, Op};

/// Where a guest that may store silently sees its page.
const SILENT_WINDOW: u64 = 0x4000_0000;

impl Hypervisor<'_> {
    /// Has a vCPU execute one instruction, then lets every vCPU take what it can take.
    pub fn execute(&mut self, index: usize, op: Op) -> Answer {
        let answer = self.instruction(index, op);
        self.settle();
        answer
    }

    /// Has a vCPU execute one instruction after the interrupts it could take, and nobody anything afterwards.
    pub fn instruction(&mut self, index: usize, op: Op) -> Answer {
        if op != Op::EnableAndHalt {
            self.boundaries(index);
        }
        if op == Op::EnableAndHalt {
            self.vcpus[index].interrupt_flag = true;
        }
        // The first nested page fault maps the window.
        for _ in 0..4 {
            if !self.enter(index) {
                return Answer::NotRunning;
            }
            if let Op::SetInterruptFlag(flag) = op {
                self.vcpus[index].interrupt_flag = flag;
                self.refresh(index);
                return Answer::Done;
            }
            let op = self.model_op(index, op);
            let cpu = self.vcpus[index].cpu.expect("a CPU");
            let outcome = self.machine.cores[cpu].run(op);
            match self.after_operation(index, op, outcome) {
                Handled::Done(answer) => return answer,
                Handled::Retry => {}
            }
        }
        unreachable!("an instruction that never ends");
    }

    /// Has a vCPU that runs execute one instruction, and `meanwhile` happen when the processor is done with it but the
    /// host has not yet looked.
    ///
    /// # Panics
    /// If the vCPU does not run.
    pub fn instruction_and(&mut self, index: usize, op: Op, meanwhile: impl FnOnce(&mut Self)) {
        assert!(self.enter(index), "a vCPU that runs");
        let op = self.model_op(index, op);
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        let outcome = self.machine.cores[cpu].run(op);
        while self.machine.advance().is_some() {}
        meanwhile(self);
        let handled = self.after_operation(index, op, outcome);
        assert_ne!(handled, Handled::Retry, "an instruction that is done");
    }

    /// Without AVIC the interrupt that waits for IF is injected at the next entry, not by the guest.
    fn refresh(&mut self, index: usize) {
        self.vcpus[index].kicked = true;
    }

    pub(super) fn after_operation(
        &mut self,
        index: usize,
        op: GuestOp,
        outcome: Outcome,
    ) -> Handled {
        match outcome {
            Outcome::Value(value) => Handled::Done(Answer::Value(value)),
            Outcome::GeneralProtection => Handled::Done(Answer::GeneralProtection),
            Outcome::Exit(exit) => self.after_exit(index, exit, Some(op)),
            _ => Handled::Done(Answer::Done),
        }
    }

    /// The instruction as the processor has it.
    fn model_op(&self, index: usize, op: Op) -> GuestOp {
        let base = self.slot(index).base().address();
        match op {
            Op::Load { offset, width } => {
                GuestOp::Read { address: base + u64::from(offset), width: width.bytes().into() }
            }
            Op::Store { offset, width, value } => GuestOp::Write {
                address: base + u64::from(offset),
                width: width.bytes().into(),
                value,
            },
            Op::Rdmsr(msr) => GuestOp::Rdmsr { msr },
            Op::Wrmsr(msr, value) => GuestOp::Wrmsr { msr, value },
            Op::ReadCr8 => GuestOp::ReadCr8,
            Op::WriteCr8(value) => GuestOp::WriteCr8 { value },
            Op::SetInterruptFlag(_) | Op::Halt | Op::EnableAndHalt => GuestOp::Hlt,
        }
    }

    /// Does an instruction for the guest that exited before it was done.
    pub(super) fn emulate(&mut self, index: usize, op: GuestOp) -> Answer {
        let op = match op {
            GuestOp::Read { address, width } => {
                Op::Load { offset: address as u16 & 0xfff, width: bytes(width) }
            }
            GuestOp::Write { address, width, value } => {
                Op::Store { offset: address as u16 & 0xfff, width: bytes(width), value }
            }
            GuestOp::Rdmsr { msr } => Op::Rdmsr(msr),
            GuestOp::Wrmsr { msr, value } => Op::Wrmsr(msr, value),
            GuestOp::ReadCr8 => Op::ReadCr8,
            GuestOp::WriteCr8 { value } => Op::WriteCr8(value),
            GuestOp::Hlt => {
                self.halted(index);
                return Answer::Done;
            }
            GuestOp::Vmmcall | GuestOp::Iret => return Answer::Done,
        };
        let (answer, effect) = common::emulate(self.vcpus[index].driver.apic_mut(), op, self.now);
        self.carry_out(index, effect);
        answer
    }

    /// Writes a register the way the APIC's mode has it.
    pub fn write(&mut self, index: usize, register: Register, value: u64) -> Answer {
        let op = match self.slot(index).mode() {
            Mode::X2Apic => Op::Wrmsr(register.msr(), value),
            _ => Op::Store { offset: register.offset(), width: Width::Dword, value },
        };
        self.execute(index, op)
    }

    /// Reads a register the way the APIC's mode has it.
    ///
    /// # Panics
    /// If the read faults or the vCPU does not run.
    pub fn read(&mut self, index: usize, register: Register) -> u32 {
        let op = match self.slot(index).mode() {
            Mode::X2Apic => Op::Rdmsr(register.msr()),
            _ => Op::Load { offset: register.offset(), width: Width::Dword },
        };
        match self.execute(index, op) {
            Answer::Value(value) => value as u32,
            answer => unreachable!("{register:?}: {answer:?}"),
        }
    }

    /// A store to the page itself, which the VM maps into the guest as plain memory: nobody is told.
    ///
    /// # Panics
    /// If the vCPU does not run.
    pub fn store_silently(&mut self, index: usize, register: Register, value: u32) {
        let mapping = Mapping { page: Storage::page_address(index), writable: true };
        self.machine.nested().map(NESTED_CR3, SILENT_WINDOW, mapping);
        self.boundaries(index);
        assert!(self.enter(index), "a vCPU that runs");
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        let address = SILENT_WINDOW + u64::from(register.offset());
        let store = GuestOp::Write { address, width: 4, value: value.into() };
        assert_eq!(self.machine.cores[cpu].run(store), Outcome::Done, "a plain store");
        self.machine.nested().unmap(NESTED_CR3, SILENT_WINDOW);
        self.machine.cores[cpu].flush_tlb(None);
        self.settle();
    }

    /// Ends the interrupt in service.
    pub fn eoi(&mut self, index: usize) {
        assert_eq!(self.write(index, Register::Eoi, 0), Answer::Done);
    }

    /// Starts every vCPU and puts its APIC into the configured mode.
    pub(super) fn start(&mut self) {
        for index in 0..self.vcpus.len() {
            let homeless = self.vcpus[index].cpu.is_none();
            if homeless {
                self.unload(0);
                self.vcpus[index].cpu = Some(0);
            }
            if self.vcpus[index].run == Run::WaitsForSipi {
                // The APIC's own state knows of the SIPI as well.
                let slot = self.slot(index);
                let _ = slot.receive(vlapic_core::Delivery::Init);
                let _ = slot.receive(vlapic_core::Delivery::Startup { page: 8 });
            }
            self.boundaries(index);
            self.vcpus[index].events.clear();
            if self.config.mode == Mode::X2Apic {
                let base = self.slot(index).base().bits();
                let answer = self.instruction(index, Op::Wrmsr(IA32_APIC_BASE, base | 1 << 10));
                assert_eq!(answer, Answer::Done);
                self.boundaries(index);
            }
            if homeless {
                self.unload(index);
                self.vcpus[0].cpu = Some(0);
            }
        }
    }
}

fn bytes(width: u32) -> Width {
    match width {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        _ => Width::Qword,
    }
}
