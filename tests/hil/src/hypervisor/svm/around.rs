//! The hypervisor around one vCPU.

use core::sync::atomic::Ordering;

use avic::Exit;
use vlapic_core::{Destination, Message, Vector};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;
use vlapic_svm_loop::{After, Host, REGISTERS};

use crate::guest::hypercall::Hypercall;
use crate::hypervisor::calls::{self, Answer};
use crate::hypervisor::{HypervisorError, VirtualMachine};
use crate::machine::identity::{self, Machine};
use crate::machine::{cpu, interrupts, smp};
use crate::svm;

/// The VM as vCPU `index` sees it.
#[derive(Clone, Copy)]
pub(super) struct Around {
    pub(super) machine: &'static VirtualMachine,
    pub(super) index: usize,
}

impl Host for Around {
    type Error = HypervisorError;

    fn now(&self) -> u64 {
        TscClock.now()
    }

    fn cpu(&self) -> u32 {
        smp::apic_id(cpu::this_cpu())
    }

    fn uninterrupted<R>(&self, work: impl FnOnce() -> R) -> R {
        interrupts::without(work)
    }

    fn is_stopped(&self) -> bool {
        self.machine.is_stopped(self.index)
    }

    fn take_leave(&self) -> bool {
        self.machine.take_leave(self.index)
    }

    fn is_requested(&self) -> bool {
        self.machine.is_requested(self.index)
    }

    fn take_request(&self) -> bool {
        self.machine.take_request(self.index)
    }

    fn enters(&self) -> bool {
        self.machine.enters(self.index)
    }

    fn left(&self) {
        self.machine.left(self.index);
    }

    /// Whatever is posted makes the poster tell the vCPU. The host's timer is left alone: until a deadline the CPU looks at
    /// the clock.
    fn sleep(&self, deadline: Option<u64>) {
        let told = || self.is_requested() || self.is_stopped();
        match deadline {
            None => interrupts::wait_unless(told),
            Some(deadline) => {
                while !told() && TscClock.now() < deadline {
                    core::hint::spin_loop();
                }
            }
        }
    }

    fn send(&self, message: &Message) {
        self.machine.send(message, Some(self.index));
    }

    fn announce(&self, destination: Destination) {
        self.machine.announce(destination, self.index);
    }

    fn end_of_interrupt(&self, vector: Vector) {
        self.machine.eois[usize::from(vector.get())].fetch_add(1, Ordering::SeqCst);
    }

    fn kick_others(&self) {
        for index in (0..self.machine.config.vcpus).filter(|index| *index != self.index) {
            self.machine.notify(index, vlapic_core::Notify::Kick);
        }
    }

    fn map_window(&self) {
        self.machine.map_window();
    }

    fn unmap_window(&self) {
        self.machine.unmap_window(self.index);
    }

    /// QEMU aborts on a guest's MOV to CR8 that does not exit while a virtual interrupt is requested.
    fn intercepts_cr8(&self) -> bool {
        identity::machine() == Machine::Qemu
    }

    fn hypercall(&self, registers: &mut [u64; REGISTERS]) -> Result<After, HypervisorError> {
        match calls::answer(self.machine, self.index, Hypercall::decode(registers))? {
            Answer::Finish(value) => Ok(After::Finish(value)),
            Answer::Value(value) => {
                let [rax, ..] = registers;
                *rax = value;
                Ok(After::Enter)
            }
        }
    }

    fn handled(&self, exit: &Exit, rcx: u64) {
        self.machine.count_exit(self.index);
        let exit = svm::Exit::new(exit.code, exit.info_1, exit.info_2);
        (self.machine.config.on_svm_exit)(self.machine, self.index, &exit, rcx);
    }
}
