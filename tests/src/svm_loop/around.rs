//! The hypervisor around one vCPU.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::Ordering;

use avic::{Exit, Inhibit, Whereabouts};
use vlapic_core::{ApicBase, Destination, Message, Notify, Trigger, Vector};
use vlapic_svm_loop::cases::Call;
use vlapic_svm_loop::{After, Host, REGISTERS};

use super::guest::{CALL, FINISH};
use super::processor::NESTED_CR3;
use super::world::World;
use crate::avic_hypervisor::Storage;
use crate::avic_model::Mapping;

/// The VM as vCPU `index` sees it.
pub(super) struct Around<'w, 'm> {
    pub(super) world: &'w World<'m>,
    pub(super) index: usize,
}

impl fmt::Debug for Around<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.index)
    }
}

impl Host for Around<'_, '_> {
    type Error = Infallible;

    fn now(&self) -> u64 {
        self.world.now()
    }

    fn cpu(&self) -> u32 {
        self.index as u32
    }

    /// The model's host takes its interrupts when it is told to.
    fn uninterrupted<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }

    fn is_stopped(&self) -> bool {
        self.world.came_up(self.index);
        self.world.is_stopped(self.index)
    }

    fn take_leave(&self) -> bool {
        false
    }

    fn is_requested(&self) -> bool {
        self.world.runner(self.index).is_requested()
    }

    fn take_request(&self) -> bool {
        self.world.runner(self.index).take_request()
    }

    fn enters(&self) -> bool {
        self.world.runner(self.index).enters()
    }

    fn left(&self) {
        self.world.runner(self.index).left();
    }

    fn sleep(&self, deadline: Option<u64>) {
        while !self.is_requested()
            && !self.world.is_stopped(self.index)
            && deadline.is_none_or(|deadline| self.now() < deadline)
        {
            {
                let mut machine = self.world.machine();
                let _ = machine.advance();
                while machine.cores[self.index].host_interrupt().is_some() {}
            }
            std::thread::yield_now();
        }
    }

    fn send(&self, message: &Message) {
        self.world.send(message, self.index);
    }

    fn announce(&self, destination: Destination) {
        let told: Vec<_> = self.world.shared.vm().announce(destination, Some(self.index)).collect();
        for (index, notify) in told {
            self.world.notify(self.index, index, notify);
        }
    }

    fn end_of_interrupt(&self, vector: Vector) {
        self.world.ends[usize::from(vector.get())].fetch_add(1, Ordering::SeqCst);
    }

    fn kick_others(&self) {
        for index in (0..self.world.vcpus()).filter(|index| *index != self.index) {
            self.world.notify(self.index, index, Notify::Kick);
        }
    }

    fn map_window(&self) {
        let mapping = Mapping { page: Storage::BEHIND_WINDOW, writable: true };
        self.world.machine().nested().map(NESTED_CR3, ApicBase::DEFAULT_ADDRESS, mapping);
    }

    fn unmap_window(&self) {
        self.world.machine().nested().unmap(NESTED_CR3, ApicBase::DEFAULT_ADDRESS);
        for index in 0..self.world.vcpus() {
            self.world.runner(index).ask_to_flush();
        }
        for index in (0..self.world.vcpus()).filter(|index| *index != self.index) {
            self.world.notify(self.index, index, Notify::Kick);
            while self.world.runner(index).keeps_translations() {
                std::thread::yield_now();
            }
        }
    }

    fn intercepts_cr8(&self) -> bool {
        false
    }

    fn hypercall(&self, registers: &mut [u64; REGISTERS]) -> Result<After, Infallible> {
        let [operation, _, _, _, _, _, second, first, ..] = *registers;
        if operation == FINISH {
            return Ok(After::Finish(first));
        }
        assert_eq!(operation, CALL, "a call that this hypervisor knows");
        registers[0] = Call::decode(first, second).map_or(u64::MAX, |call| self.answer(call));
        Ok(After::Enter)
    }

    fn handled(&self, _: &Exit, _: u64) {
        self.world.runner(self.index).exits.fetch_add(1, Ordering::SeqCst);
    }
}

impl Around<'_, '_> {
    fn answer(&self, call: Call) -> u64 {
        let world = self.world;
        match call {
            Call::Exits(vcpu) => world.runner(vcpu).exits.load(Ordering::SeqCst),
            Call::Post { vcpu, vector, level } => {
                let trigger = if level { Trigger::Level } else { Trigger::Edge };
                let receipt = world.slot(vcpu).request(vector, trigger);
                world.notify(self.index, vcpu, receipt.notify);
                0
            }
            Call::Ends(vector) => world.ends[usize::from(vector)].load(Ordering::SeqCst),
            Call::Sleeps(vcpu) => {
                u64::from(world.slot(vcpu).inbox().whereabouts() == Whereabouts::Blocked)
            }
            Call::Inhibit(true) => {
                let told: Vec<_> = world.shared.inhibit(Inhibit::Disabled).collect();
                for (index, notify) in told {
                    world.notify(self.index, index, notify);
                }
                0
            }
            Call::Inhibit(false) => {
                world.shared.allow(Inhibit::Disabled);
                0
            }
        }
    }
}
