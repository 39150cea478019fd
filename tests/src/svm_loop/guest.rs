//! A guest program: a thread that has a processor execute its instructions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel as channel_of};

use vlapic_core::{ApicBase, IA32_APIC_BASE, Mode};
use vlapic_svm_loop::cases::{Call, Case, Guest};

use super::world::World;
use crate::avic_model::GuestOp;

/// Hypercalls, in RAX: the program is done with the result in RDI; a [`Call`] in RDI and RSI.
pub(super) const FINISH: u64 = 1;
pub(super) const CALL: u64 = 16;

/// What a program asks of its processor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Op(GuestOp),
    /// STI and HLT.
    EnableAndHalt,
    InterruptFlag(bool),
    /// VMMCALL with RAX, RDI and RSI.
    Vmmcall([u64; 3]),
}

/// How it ended: with a value, or with #GP.
pub(super) type Answer = Result<u64, ()>;

/// The processor's end.
pub(super) struct Port {
    pub(super) requests: Receiver<Request>,
    pub(super) answers: Sender<Answer>,
    pub(super) start: Sender<()>,
}

/// The program's end.
pub(super) struct Program {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    start: Receiver<()>,
}

pub(super) fn channel() -> (Port, Program) {
    let (to_processor, requests) = channel_of();
    let (answers, from_processor) = channel_of();
    let (start, started) = channel_of();
    let program = Program { requests: to_processor, answers: from_processor, start: started };
    (Port { requests, answers, start }, program)
}

/// The program of one vCPU.
pub(super) struct ModelGuest<'w, 'm> {
    world: &'w World<'m>,
    index: usize,
    mode: Mode,
    program: Program,
}

/// The processor is gone: the vCPU has failed, and its thread says why.
struct Gone;

impl<'w, 'm> ModelGuest<'w, 'm> {
    pub(super) fn new(world: &'w World<'m>, index: usize, mode: Mode, program: Program) -> Self {
        Self { world, index, mode, program }
    }

    /// Waits until the vCPU is started, enables its APIC, and runs the case.
    pub(super) fn run(mut self, case: &Case) {
        if self.program.start.recv().is_err() {
            return;
        }
        let value = match self.prepare() {
            Ok(()) => (case.program)(&mut self),
            Err(Gone) => u64::from(line!()),
        };
        if value != 0 {
            // The others would wait for ever.
            self.world.stop_all_but(self.index);
        }
        let _ = self.program.requests.send(Request::Vmmcall([FINISH, value, 0]));
    }

    fn prepare(&mut self) -> Result<(), Gone> {
        if self.mode == Mode::X2Apic {
            let base = self.ask(Request::Op(GuestOp::Rdmsr { msr: IA32_APIC_BASE }))?;
            let value = base.unwrap_or(0) | 1 << 10;
            let _ = self.ask(Request::Op(GuestOp::Wrmsr { msr: IA32_APIC_BASE, value }))?;
        }
        self.write(0x0f0, 0x1ff);
        self.interrupts_on();
        Ok(())
    }

    fn ask(&self, request: Request) -> Result<Answer, Gone> {
        self.program.requests.send(request).map_err(|_| Gone)?;
        self.program.answers.recv().map_err(|_| Gone)
    }

    /// A value, or one that no register has if the instruction faulted or there is no processor any more.
    fn value(&self, request: Request) -> u64 {
        match self.ask(request) {
            Ok(Ok(value)) => value,
            _ => u64::MAX,
        }
    }
}

impl Guest for ModelGuest<'_, '_> {
    fn index(&self) -> usize {
        self.index
    }

    fn is_x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    fn read(&mut self, offset: u16) -> u64 {
        self.value(Request::Op(match self.mode {
            Mode::X2Apic => GuestOp::Rdmsr { msr: msr(offset) },
            _ => GuestOp::Read { address: address(offset), width: 4 },
        }))
    }

    fn write(&mut self, offset: u16, value: u64) {
        self.value(Request::Op(match self.mode {
            Mode::X2Apic => GuestOp::Wrmsr { msr: msr(offset), value },
            _ => GuestOp::Write { address: address(offset), width: 4, value },
        }));
    }

    fn read_cr8(&mut self) -> u64 {
        self.value(Request::Op(GuestOp::ReadCr8))
    }

    fn write_cr8(&mut self, value: u64) {
        self.value(Request::Op(GuestOp::WriteCr8 { value }));
    }

    fn interrupts_off(&mut self) {
        self.value(Request::InterruptFlag(false));
    }

    fn interrupts_on(&mut self) {
        self.value(Request::InterruptFlag(true));
    }

    fn halt(&mut self) {
        self.value(Request::EnableAndHalt);
    }

    fn pause(&self) {
        std::thread::yield_now();
    }

    fn gives_up(&self) -> bool {
        self.world.is_stopped(self.index) || self.world.is_late()
    }

    fn taken(&self, vcpu: usize, vector: u8) -> u64 {
        self.world.runner(vcpu).taken[usize::from(vector)].load(Ordering::SeqCst)
    }

    fn word(&self) -> &AtomicU64 {
        &self.world.word
    }

    fn call(&mut self, call: Call) -> u64 {
        let (kind, argument) = call.encode();
        self.value(Request::Vmmcall([CALL, kind, argument]))
    }
}

pub(super) fn msr(offset: u16) -> u32 {
    0x800 + u32::from(offset >> 4)
}

pub(super) fn address(offset: u16) -> u64 {
    ApicBase::DEFAULT_ADDRESS + u64::from(offset)
}
