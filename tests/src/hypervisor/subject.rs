//! The hypervisor as one of several ways of running local APICs.

use std::sync::atomic::Ordering;

use vlapic_core::{Message, Mode, Trigger};

use super::{Answer, Hypervisor, Op, Run};
use crate::steps::{Random, Seen, Subject, UPCALL};

impl Hypervisor<'_> {
    /// Registers the upcall vector of every vCPU.
    pub fn register_upcalls(&mut self) {
        for index in 0..self.vcpus.len() {
            self.register_upcall(index, UPCALL);
        }
    }
}

impl Subject for Hypervisor<'_> {
    fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    fn execute(&mut self, vcpu: usize, op: Op) -> Answer {
        Hypervisor::execute(self, vcpu, op)
    }

    fn send(&mut self, message: &Message) {
        Hypervisor::send(self, message);
    }

    fn post(&mut self, vcpu: usize, vector: u8, trigger: Trigger) {
        let _ = Hypervisor::post(self, vcpu, vector, trigger);
    }

    fn advance(&mut self, ticks: u32) {
        Hypervisor::advance(self, ticks);
    }

    /// The scheduler moves a vCPU, somebody kicks one for nothing, a route comes or goes.
    fn disturb(&mut self, how: u64) {
        let mut random = Random::new(how);
        let index = random.below(self.vcpus.len() as u64) as usize;
        match random.below(4) {
            0 => self.leave(index),
            1 => {
                self.unload(index);
                if self.vcpus[index].run == Run::Ready && random.below(2) == 0 {
                    self.slots[index].inbox().preempt();
                }
                let free: Vec<_> = (0..self.machine.cores.len())
                    .filter(|&cpu| self.vcpus.iter().all(|vcpu| vcpu.cpu != Some(cpu)))
                    .collect();
                let cpu = random.pick(&free);
                self.load(index, cpu);
                self.move_sleeper(index, cpu);
            }
            2 => {
                let vector = vlapic_core::Vector::new(0x10 + random.below(0xf0) as u8);
                let posting = self.slots[index].inbox();
                vector.inspect(|&vector| posting.set_level_route(vector, random.below(2) == 0));
            }
            _ => self.notify(index, vlapic_core::Notify::Kick),
        }
        self.settle();
    }

    fn notify_upcall(&mut self, vcpu: usize) {
        Hypervisor::notify_upcall(self, vcpu);
    }

    fn clear_pending(&mut self, vcpu: usize) {
        self.storage.pending[vcpu].store(0, Ordering::SeqCst);
    }

    fn mode(&self, vcpu: usize) -> Mode {
        self.slots[vcpu].mode()
    }

    fn seen(&self, vcpu: usize) -> Seen<'_> {
        let super::VirtualCpu { taken, broadcasts, events, .. } = &self.vcpus[vcpu];
        Seen { taken, broadcasts, events, base: self.slots[vcpu].base().bits() }
    }

    fn word(&self, vcpu: usize, offset: u16) -> u32 {
        self.slots[vcpu].page().load(offset)
    }
}
