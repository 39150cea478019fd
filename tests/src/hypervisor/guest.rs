//! What the guest does.

use vlapic_core::{IA32_APIC_BASE, Mode, Register, Width};

use super::{Hypervisor, Run, Storage};
use crate::common;
use crate::model::{self, Window};

/// One instruction of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A read of the register window.
    Load {
        /// Byte offset.
        offset: u16,
        /// How many bytes.
        width: Width,
    },
    /// A write to the register window.
    Store {
        /// Byte offset.
        offset: u16,
        /// How many bytes.
        width: Width,
        /// The value.
        value: u64,
    },
    /// RDMSR.
    Rdmsr(u32),
    /// WRMSR.
    Wrmsr(u32, u64),
    /// MOV from CR8.
    ReadCr8,
    /// MOV to CR8.
    WriteCr8(u64),
    /// STI or CLI: sets RFLAGS.IF.
    SetInterruptFlag(bool),
    /// HLT.
    Halt,
    /// STI and HLT, with no interrupt taken in between.
    EnableAndHalt,
}

impl Op {
    pub(super) fn window_offset(self) -> Option<u16> {
        match self {
            Op::Load { offset, .. } | Op::Store { offset, .. } => Some(offset),
            _ => None,
        }
    }
}

/// What came of an instruction, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It read this.
    Value(u64),
    /// It is done.
    Done,
    /// It raised #GP(0).
    GeneralProtection,
    /// It was not executed: the vCPU sleeps or is not started.
    NotRunning,
}

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
        if !self.enter(index) {
            return Answer::NotRunning;
        }
        if op == Op::EnableAndHalt {
            self.vcpus[index].interrupt_flag = true;
        }
        if let Op::SetInterruptFlag(flag) = op {
            self.vcpus[index].interrupt_flag = flag;
            return Answer::Done;
        }
        let core = self.core(index);
        let outcome = match op {
            Op::Load { offset, width } => core.mmio_read(offset.into(), width.bytes().into()),
            Op::Store { offset, width, value } => {
                core.mmio_write(offset.into(), width.bytes().into(), value)
            }
            Op::Rdmsr(msr) => core.rdmsr(msr),
            Op::Wrmsr(msr, value) => core.wrmsr(msr, value),
            Op::ReadCr8 => core.read_cr8(),
            Op::WriteCr8(value) => core.write_cr8(value),
            Op::SetInterruptFlag(_) => return Answer::Done,
            Op::Halt | Op::EnableAndHalt => core.hlt(),
        };
        match outcome {
            model::Outcome::Value(value) => Answer::Value(value),
            model::Outcome::GeneralProtection => Answer::GeneralProtection,
            model::Outcome::Exit(exit) => self.after_exit(index, exit, Some(op)),
            _ => Answer::Done,
        }
    }

    /// Does an instruction for the guest that exited before it was done.
    pub(super) fn emulate(&mut self, index: usize, op: Op) -> Answer {
        let (answer, effect) = common::emulate(self.vcpus[index].driver.apic_mut(), op, self.now);
        if matches!(op, Op::Halt | Op::EnableAndHalt) {
            self.halted(index);
        }
        self.carry_out(index, effect);
        let wrote = answer == Answer::Done;
        if wrote && matches!(op, Op::Store { offset: 0x0f0, .. } | Op::Wrmsr(0x80f, _)) {
            self.svr_was_written(index);
        }
        answer
    }

    /// Writes a register the way the APIC's mode has it.
    pub fn write(&mut self, index: usize, register: Register, value: u64) -> Answer {
        let op = match self.slots[index].mode() {
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
        let op = match self.slots[index].mode() {
            Mode::X2Apic => Op::Rdmsr(register.msr()),
            _ => Op::Load { offset: register.offset(), width: Width::Dword },
        };
        match self.execute(index, op) {
            Answer::Value(value) => value as u32,
            answer => unreachable!("{register:?}: {answer:?}"),
        }
    }

    /// Stores to a register by a second mapping that leads to the virtual-APIC page itself, as plain memory: the value
    /// is there and nobody is told.
    pub fn store_silently(&mut self, index: usize, register: Register, value: u32) {
        assert!(self.config.silent_window, "a VM that shows its guest the page");
        self.boundaries(index);
        assert!(self.enter(index), "a vCPU that runs");
        self.core(index).window = Window::Memory(Storage::page_address(index));
        let offset = register.offset();
        let outcome = self.core(index).mmio_write(offset.into(), 4, value.into());
        assert_eq!(outcome, model::Outcome::Done, "a plain store");
        self.core(index).window = Window::ApicAccessPage;
        self.settle();
    }

    /// Ends the interrupt in service.
    pub fn eoi(&mut self, index: usize) {
        assert_eq!(self.write(index, Register::Eoi, 0), Answer::Done);
    }

    /// Starts every vCPU and puts its APIC into the configured mode.
    pub fn start(&mut self) {
        for index in 0..self.vcpus.len() {
            if self.vcpus[index].run == Run::WaitsForSipi {
                // The APIC's own state knows of the SIPI as well.
                let slot = &self.slots[index];
                let _ = slot.receive(vlapic_core::Delivery::Init);
                let _ = slot.receive(vlapic_core::Delivery::Startup { page: 8 });
            }
            self.boundaries(index);
            self.vcpus[index].events.clear();
            if self.config.mode == Mode::X2Apic {
                let base = self.slots[index].base().bits();
                let answer = self.execute(index, Op::Wrmsr(IA32_APIC_BASE, base | 1 << 10));
                assert_eq!(answer, Answer::Done);
            }
        }
    }
}
