//! What the loop needs of the machine.

use avic::{Exit, Vmcb};
use vlapic_core::{Destination, Message, Vector, Width};

/// The general-purpose registers by the number of their encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
pub const REGISTERS: usize = 16;

/// One virtual CPU on the physical one that runs it: its VMCB, its registers, and VMRUN.
pub trait Cpu {
    /// The control block.
    type Vmcb: Vmcb;
    /// A decoded access to memory that waits for its end.
    type Instruction;
    /// What can go wrong.
    type Error;

    /// The control block, outside guest mode.
    fn vmcb(&mut self) -> &mut Self::Vmcb;

    /// VMRUN, to the #VMEXIT. `longest` bounds the turn, in guest TSC ticks: what then ends it is a physical interrupt.
    /// Interrupts of this CPU are off.
    ///
    /// # Errors
    /// The processor refused the control block.
    fn run(&mut self, longest: Option<u64>) -> Result<(), Self::Error>;

    /// Lets the host take the interrupt that ended the turn, if that is what ended it.
    fn dispatch_interrupt(&mut self);

    /// Makes the next entry the first: at `page`, as after a SIPI, or where the vCPU begins after RESET. `false`: the vCPU
    /// has nothing to run there.
    fn start(&mut self, page: Option<u8>) -> bool;

    /// The general-purpose registers.
    fn registers(&mut self) -> &mut [u64; REGISTERS];

    /// Moves RIP past the instruction that exited before it was done.
    ///
    /// # Errors
    /// It is not known where it ends.
    fn skip_instruction(&mut self) -> Result<(), Self::Error>;

    /// Decodes the access to memory that the instruction at RIP makes.
    fn decode(&mut self) -> Option<(Access, Self::Instruction)>;

    /// Ends an access that was decoded: a load gets `value`, and RIP moves on.
    fn complete(&mut self, instruction: &Self::Instruction, value: u64);

    /// The general-purpose register of the MOV to or from CR8 at RIP, by its number.
    ///
    /// # Errors
    /// It is no such MOV.
    fn cr8_operand(&mut self) -> Result<usize, Self::Error>;

    /// Has the next entry drop what this CPU has cached of the guest's physical memory.
    fn flush_translations(&mut self);
}

/// What an instruction asks of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Load(Width),
    /// A store of a value.
    Store(Width, u64),
}

/// The hypervisor around one vCPU.
pub trait Host {
    /// What can go wrong.
    type Error;

    /// The guest's TSC.
    fn now(&self) -> u64;

    /// The physical APIC ID of this CPU.
    fn cpu(&self) -> u32;

    /// Does `work` with interrupts of this CPU off.
    fn uninterrupted<R>(&self, work: impl FnOnce() -> R) -> R;

    /// The vCPU has to end.
    fn is_stopped(&self) -> bool;

    /// The vCPU has to leave this CPU, to go on elsewhere; asking clears it.
    fn take_leave(&self) -> bool;

    /// Whether somebody has told the vCPU to look at its APIC.
    fn is_requested(&self) -> bool;

    /// The same; asking clears it.
    fn take_request(&self) -> bool;

    /// The vCPU is about to enter. `true`: mappings have gone, and translations are to be flushed.
    ///
    /// From here to [`left`](Self::left) whoever takes a mapping away waits for the vCPU.
    fn enters(&self) -> bool;

    /// The vCPU has left guest mode, or has not entered.
    fn left(&self);

    /// Waits until the vCPU is told of anything, or for `deadline`, in guest TSC ticks.
    fn sleep(&self, deadline: Option<u64>);

    /// Routes an IPI that the vCPU sends, and tells who accepts it.
    fn send(&self, message: &Message);

    /// Tells the targets of an IPI that hardware has put into their IRR.
    fn announce(&self, destination: Destination);

    /// A level-triggered interrupt has ended.
    fn end_of_interrupt(&self, vector: Vector);

    /// Has every other vCPU of the VM go through its entry work.
    fn kick_others(&self);

    /// Maps the register window, to whatever page.
    fn map_window(&self);

    /// Unmaps it, and sees to it that no CPU keeps a translation.
    fn unmap_window(&self);

    /// MOV to CR8 has to exit whatever the driver says, as QEMU needs it (see docs/testing.md).
    fn intercepts_cr8(&self) -> bool;

    /// The guest executed VMMCALL.
    ///
    /// # Errors
    /// The guest has given up.
    fn hypercall(&self, registers: &mut [u64; REGISTERS]) -> Result<After, Self::Error>;

    /// An exit that the guest caused was handled; RCX as it was at the exit.
    fn handled(&self, exit: &Exit, rcx: u64);
}

/// What comes after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next entry.
    Enter,
    /// The program is done, with this result.
    Finish(u64),
}
