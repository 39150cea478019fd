//! The processor of one vCPU.

use vlapic_svm_loop::{Access, Cpu, REGISTERS};

use crate::guest::{Program, Start, context};
use crate::hypervisor::VirtualMachine;
use crate::hypervisor::access::width;
use crate::instruction::mov::{self, Direction};
use crate::svm::vcpu::Current;
use crate::svm::vmcb::OwnedVmcb;
use crate::svm::{Exit, SvmError};

/// A vCPU that this CPU runs.
pub(super) struct Processor<'v> {
    current: Current<'v>,
    machine: &'static VirtualMachine,
    index: usize,
    program: Option<(Program, u64)>,
    exit: Option<Exit>,
}

impl<'v> Processor<'v> {
    pub(super) fn new(
        current: Current<'v>,
        machine: &'static VirtualMachine,
        index: usize,
        program: Option<(Program, u64)>,
    ) -> Self {
        Self { current, machine, index, program, exit: None }
    }
}

impl Cpu for Processor<'_> {
    type Vmcb = OwnedVmcb;
    type Instruction = mov::Access;
    type Error = SvmError;

    fn vmcb(&mut self) -> &mut OwnedVmcb {
        self.current.words()
    }

    fn run(&mut self, longest: Option<u64>) -> Result<(), SvmError> {
        self.current.set_turn(longest);
        self.exit = None;
        self.exit = Some(self.current.run()?);
        Ok(())
    }

    fn dispatch_interrupt(&mut self) {
        if let Some(exit) = &self.exit {
            self.current.dispatch_interrupt(exit);
        }
    }

    fn start(&mut self, page: Option<u8>) -> bool {
        match (page, self.program) {
            (Some(page), _) if self.machine.config.real_mode => self.current.start_at_sipi(page),
            (_, Some((program, argument))) => {
                self.current.start(&Start::new(context(self.index), program, argument));
            }
            _ => return false,
        }
        true
    }

    fn registers(&mut self) -> &mut [u64; REGISTERS] {
        self.current.general()
    }

    fn skip_instruction(&mut self) -> Result<(), SvmError> {
        match self.exit {
            Some(exit) => self.current.skip_instruction(&exit),
            None => Ok(()),
        }
    }

    fn decode(&mut self) -> Option<(Access, mov::Access)> {
        let access = self.current.decode_access().ok()?;
        let width = width(access.width);
        let what = match access.direction {
            Direction::Store { value } => Access::Store(width, value),
            Direction::Load { .. } => Access::Load(width),
        };
        Some((what, access))
    }

    fn complete(&mut self, instruction: &mov::Access, value: u64) {
        self.current.complete_access(instruction, value);
    }

    fn cr8_operand(&mut self) -> Result<usize, SvmError> {
        self.current.cr8_operand()
    }

    fn flush_translations(&mut self) {
        self.current.flush_translations();
    }
}
