//! The processor of one vCPU: the core of its number, and the guest's instructions until an exit.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering;

use vlapic_core::{Mode, Width};
use vlapic_svm_loop::{Access, Cpu, REGISTERS};

use super::guest::{Answer, Port, Request, address, msr};
use super::world::{KICK, World};
use crate::avic_hypervisor::Storage;
use crate::avic_model::{Core, GuestOp, Outcome, Vmcb, control, field, intercept};

/// N_CR3 of the VM.
pub(super) const NESTED_CR3: u64 = 0x20_0000;

const EOI: u16 = 0x0b0;

/// The register through which CR8 goes, and those of the other instructions, by their number.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

/// The model's VMCB as the driver takes it.
#[derive(Debug)]
pub(super) struct ModelVmcb(Vmcb);

impl avic::Vmcb for ModelVmcb {
    fn load(&self, offset: u16) -> u64 {
        self.0.get64(offset.into())
    }

    fn store(&mut self, offset: u16, value: u64) {
        self.0.set64(offset.into(), value);
    }
}

/// A VMCB as a hypervisor has it before the driver comes.
pub(super) fn prepared_vmcb(index: usize) -> ModelVmcb {
    let mut vmcb = Vmcb::new(0x4000_0000 + 0x1000 * index as u64);
    let intercepts = intercept::INTR | intercept::NMI | intercept::HLT | intercept::MSR_PROT;
    vmcb.set32(field::INTERCEPTS_3, intercepts);
    vmcb.set32(field::INTERCEPTS_4, intercept::VMRUN | intercept::VMMCALL);
    vmcb.set32(field::ASID, 1);
    vmcb.set64(field::NESTED_CONTROL, 1);
    vmcb.set64(field::NESTED_CR3, NESTED_CR3);
    vmcb.set64(field::MSRPM_BASE, Storage::permissions_address(index));
    vmcb.set64(field::VIRTUAL_INTERRUPT, control::V_GIF);
    ModelVmcb(vmcb)
}

/// One vCPU and the core that runs it.
pub(super) struct Processor<'w, 'm> {
    world: &'w World<'m>,
    index: usize,
    vmcb: ModelVmcb,
    port: Port,
    registers: [u64; REGISTERS],
    interrupt_flag: bool,
    /// STI was the last instruction.
    shadow: bool,
    /// What a handler has still to do.
    handler: VecDeque<GuestOp>,
    /// The instruction under way, and whether it is the handler's.
    current: Option<(GuestOp, bool)>,
    /// It is over; its answer is in the registers.
    over: bool,
}

impl fmt::Debug for Processor<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {} in {:?}", self.index, self.current)
    }
}

impl<'w, 'm> Processor<'w, 'm> {
    pub(super) fn new(world: &'w World<'m>, index: usize, vmcb: ModelVmcb, port: Port) -> Self {
        Self {
            world,
            index,
            vmcb,
            port,
            registers: [0; REGISTERS],
            interrupt_flag: false,
            shadow: false,
            handler: VecDeque::new(),
            current: None,
            over: false,
        }
    }

    /// The instruction under way has ended.
    fn answer(&mut self, answer: Answer) {
        if let Some((_, false)) = self.current.take() {
            // A program that is gone needs no answer.
            let _ = self.port.answers.send(answer);
        }
    }

    /// What the instruction that the host has stepped over left in the registers.
    fn answer_from_registers(&mut self) {
        if !self.over {
            return;
        }
        self.over = false;
        let value = match self.current {
            Some((GuestOp::Rdmsr { .. }, _)) => {
                self.registers[RDX] << 32 | self.registers[RAX] & 0xffff_ffff
            }
            Some((GuestOp::ReadCr8, _)) => self.registers[RBX],
            _ => self.registers[RAX],
        };
        self.answer(Ok(value));
    }

    /// The guest takes an interrupt: its handler counts, ends it, and returns.
    fn takes(&mut self, vector: u8) {
        self.interrupt_flag = false;
        self.world.runner(self.index).taken[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
        let eoi = match self.world.slot(self.index).mode() {
            Mode::X2Apic => GuestOp::Wrmsr { msr: msr(EOI), value: 0 },
            _ => GuestOp::Write { address: address(EOI), width: 4, value: 0 },
        };
        self.handler.extend([eoi, GuestOp::Iret]);
    }

    /// The next instruction: the handler's come first.
    fn fetch(&mut self, core: &mut Core<'_>) -> Option<GuestOp> {
        if let Some((op, _)) = self.current {
            return Some(op);
        }
        if let Some(op) = self.handler.pop_front() {
            self.current = Some((op, true));
            return Some(op);
        }
        let op = match self.port.requests.try_recv().ok()? {
            Request::Op(op) => op,
            Request::EnableAndHalt => {
                (self.interrupt_flag, self.shadow) = (true, true);
                // Nothing is taken; the host may well be.
                let _ = core.boundary(true, true);
                GuestOp::Hlt
            }
            Request::InterruptFlag(flag) => {
                self.interrupt_flag = flag;
                let _ = self.port.answers.send(Ok(0));
                return None;
            }
            Request::Vmmcall([operation, first, second]) => {
                self.registers[RAX] = operation;
                self.registers[RDI] = first;
                self.registers[RSI] = second;
                GuestOp::Vmmcall
            }
        };
        self.current = Some((op, false));
        Some(op)
    }

    /// One instruction boundary and one instruction. Whether the guest has exited.
    fn step(&mut self, core: &mut Core<'_>) -> bool {
        match core.boundary(self.interrupt_flag, self.shadow) {
            Outcome::Exit(_) => return true,
            Outcome::Delivered(vector) => self.takes(vector),
            _ => {}
        }
        let Some(op) = self.fetch(core) else { return false };
        if !core.in_guest() {
            // A physical interrupt came with STI; HLT is executed when the guest is back.
            return true;
        }
        self.shadow = false;
        self.load_registers(op);
        let answer = match core.run(op) {
            Outcome::Exit(exit) => {
                if exit.trap {
                    self.answer(Ok(0));
                }
                return true;
            }
            Outcome::Value(value) => Ok(value),
            Outcome::GeneralProtection => Err(()),
            _ => Ok(0),
        };
        if op == GuestOp::Iret {
            self.interrupt_flag = true;
        }
        self.answer(answer);
        false
    }

    /// What the host finds if the instruction exits.
    fn load_registers(&mut self, op: GuestOp) {
        match op {
            GuestOp::Rdmsr { msr } => self.registers[RCX] = msr.into(),
            GuestOp::Wrmsr { msr, value } => {
                self.registers[RCX] = msr.into();
                self.registers[RAX] = value & 0xffff_ffff;
                self.registers[RDX] = value >> 32;
            }
            GuestOp::WriteCr8 { value } => self.registers[RBX] = value,
            _ => {}
        }
    }
}

impl Cpu for Processor<'_, '_> {
    type Vmcb = ModelVmcb;
    type Instruction = ();
    type Error = String;

    fn vmcb(&mut self) -> &mut ModelVmcb {
        &mut self.vmcb
    }

    fn run(&mut self, longest: Option<u64>) -> Result<(), String> {
        self.answer_from_registers();
        let until = longest.map(|ticks| self.world.now().saturating_add(ticks));
        let world = self.world;
        {
            let mut machine = world.machine();
            let core = &mut machine.cores[self.index];
            let mut vmcb = self.vmcb.0.clone();
            let flags = vmcb.get64(field::RFLAGS) & !(1 << 9);
            vmcb.set64(field::RFLAGS, flags | u64::from(self.interrupt_flag) << 9);
            let entered = core.vmrun(vmcb).map_err(|found| format!("VMRUN refused: {found:?}"))?;
            match entered.injected {
                Some(event) if event.kind == 0 => self.takes(event.vector),
                Some(event) if event.kind == 3 => self.answer(Err(())),
                _ => {}
            }
        }
        loop {
            {
                let mut machine = world.machine();
                let _ = machine.advance();
                let core = &mut machine.cores[self.index];
                if until.is_some_and(|until| world.now() >= until) || world.is_stopped(self.index) {
                    core.physical_interrupt(KICK);
                }
                if self.step(core) {
                    let mut vmcb = core.take_vmcb().ok_or("an exit without a VMCB")?;
                    vmcb.set32(field::TLB_CONTROL, 0);
                    self.vmcb.0 = vmcb;
                    return Ok(());
                }
            }
            std::thread::yield_now();
        }
    }

    fn dispatch_interrupt(&mut self) {
        let mut machine = self.world.machine();
        while machine.cores[self.index].host_interrupt().is_some() {}
    }

    fn start(&mut self, _: Option<u8>) -> bool {
        self.port.start.send(()).is_ok()
    }

    fn registers(&mut self) -> &mut [u64; REGISTERS] {
        &mut self.registers
    }

    fn skip_instruction(&mut self) -> Result<(), String> {
        let shadow = self.vmcb.0.get64(field::INTERRUPT_SHADOW);
        self.vmcb.0.set64(field::INTERRUPT_SHADOW, shadow & !1);
        self.over = true;
        Ok(())
    }

    fn decode(&mut self) -> Option<(Access, ())> {
        let bytes = |width| match width {
            1 => Width::Byte,
            2 => Width::Word,
            4 => Width::Dword,
            _ => Width::Qword,
        };
        match self.current?.0 {
            GuestOp::Read { width, .. } => Some((Access::Load(bytes(width)), ())),
            GuestOp::Write { width, value, .. } => Some((Access::Store(bytes(width), value), ())),
            _ => None,
        }
    }

    fn complete(&mut self, (): &(), value: u64) {
        self.answer(Ok(value));
    }

    fn cr8_operand(&mut self) -> Result<usize, String> {
        Ok(RBX)
    }

    fn flush_translations(&mut self) {
        const THIS_ASID: u32 = 3;
        self.vmcb.0.set32(field::TLB_CONTROL, THIS_ASID);
    }
}
