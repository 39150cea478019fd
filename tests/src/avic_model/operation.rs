//! Guest operations, and the steps they are made of.

use super::exit::{Outcome, VmExit};
use super::guest::{Guest, Silicon};
use super::ipi::Ipi;

/// One instruction of the guest, as far as the model cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of instructions")]
pub enum GuestOp {
    /// A load of `width` bytes from guest-physical memory.
    Read {
        address: u64,
        width: u32,
    },
    /// A store of `width` bytes to guest-physical memory.
    Write {
        address: u64,
        width: u32,
        value: u64,
    },
    Rdmsr {
        msr: u32,
    },
    Wrmsr {
        msr: u32,
        value: u64,
    },
    ReadCr8,
    WriteCr8 {
        value: u64,
    },
    Hlt,
    Vmmcall,
    /// Ends an NMI or interrupt handler; RFLAGS.IF becomes 1.
    Iret,
}

impl GuestOp {
    /// Length of the instruction in bytes: the shortest encoding.
    pub(super) fn length(self) -> u64 {
        match self {
            GuestOp::Hlt => 1,
            GuestOp::Rdmsr { .. }
            | GuestOp::Wrmsr { .. }
            | GuestOp::Read { .. }
            | GuestOp::Write { .. }
            | GuestOp::Iret => 2,
            GuestOp::Vmmcall => 3,
            GuestOp::ReadCr8 | GuestOp::WriteCr8 { .. } => 4,
        }
    }
}

/// An operation that has not ended.
#[derive(Debug)]
pub(super) enum Operation {
    /// Nothing was done yet.
    Start(GuestOp),
    /// An IPI is being sent.
    Ipi(Ipi),
    /// TPR or ISR changed; PPR is next.
    Prioritise,
    /// PPR is right; the highest request is next.
    Evaluate,
    /// The page was written; the exit is next.
    Trap(VmExit),
}

/// What one step led to.
#[derive(Debug)]
pub(super) enum Progress {
    /// The operation goes on.
    Next(Operation),
    /// The operation ended.
    Done(Outcome),
}

impl Progress {
    pub(super) const DONE: Self = Progress::Done(Outcome::Done);

    pub(super) fn exit(exit: VmExit) -> Self {
        Progress::Done(Outcome::Exit(exit))
    }
}

impl Guest<'_> {
    /// Starts an operation.
    pub(super) fn begin(&mut self, op: GuestOp) {
        assert!(self.operation.is_none(), "the operation before it has not ended");
        assert!(!self.halted, "a halted guest runs no instruction");
        self.instruction_length = op.length();
        self.operation = Some(Operation::Start(op));
    }

    /// Makes one step of the operation. Returns its outcome when it ends.
    pub(super) fn step(&mut self, silicon: &mut Silicon) -> Option<Outcome> {
        let operation = self.operation.take().expect("an operation was begun");
        let progress = match operation {
            Operation::Start(op) => self.start(silicon, op),
            Operation::Ipi(ipi) => self.step_ipi(ipi),
            Operation::Prioritise => {
                self.update_ppr();
                Progress::Next(Operation::Evaluate)
            }
            Operation::Evaluate => {
                self.evaluate();
                Progress::DONE
            }
            Operation::Trap(exit) => Progress::exit(exit),
        };
        match progress {
            Progress::Next(operation) => {
                self.operation = Some(operation);
                None
            }
            Progress::Done(outcome) => {
                self.retire(outcome);
                Some(outcome)
            }
        }
    }

    fn start(&mut self, silicon: &mut Silicon, op: GuestOp) -> Progress {
        match op {
            GuestOp::Read { address, width } => self.load(silicon, address, width),
            GuestOp::Write { address, width, value } => self.store(silicon, address, width, value),
            GuestOp::Rdmsr { msr } => self.rdmsr(silicon, msr),
            GuestOp::Wrmsr { msr, value } => self.wrmsr(silicon, msr, value),
            GuestOp::ReadCr8 => self.read_cr8(silicon),
            GuestOp::WriteCr8 { value } => self.write_cr8(silicon, value),
            GuestOp::Hlt => self.hlt(),
            GuestOp::Vmmcall => self.vmmcall(),
            GuestOp::Iret => {
                self.interrupt_flag = true;
                self.nmi_mask = false;
                Progress::DONE
            }
        }
    }

    /// Moves RIP over an instruction that completed, and ends the interrupt shadow before it.
    fn retire(&mut self, outcome: Outcome) {
        let completed = match outcome {
            Outcome::Exit(exit) => exit.trap,
            Outcome::GeneralProtection => false,
            _ => true,
        };
        if completed {
            self.rip = self.rip.wrapping_add(self.instruction_length);
            self.shadow = false;
        }
    }
}
