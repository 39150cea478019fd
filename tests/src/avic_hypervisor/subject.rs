//! The hypervisor as one of several ways of running local APICs.

use std::sync::atomic::Ordering;

use avic::Inhibit;
use vlapic_core::{Message, Mode, Trigger};

use super::{Hypervisor, Run};
use crate::hypervisor::{Answer, Op};
use crate::steps::{Random, Seen, Subject, UPCALL};

impl Hypervisor<'_> {
    /// Registers the upcall vector of every vCPU.
    pub fn register_upcalls(&mut self) {
        for index in 0..self.vcpus.len() {
            self.register_upcall(index, UPCALL);
        }
    }

    /// Takes every reason for emulation back that the hypervisor has given, or gives one.
    pub(super) fn toggle(&mut self, inhibit: Inhibit, vcpu: Option<usize>) {
        let present = match vcpu {
            Some(index) => self.slot(index).inbox().inhibits(),
            None => self.shared.inhibits(),
        };
        for reason in present.iter() {
            match vcpu {
                Some(index) => self.slot(index).inbox().allow(reason),
                None => self.shared.allow(reason),
            }
        }
        if !present.is_empty() {
            return;
        }
        let told: Vec<_> = match vcpu {
            Some(index) => vec![(index, self.slot(index).inbox().inhibit(inhibit))],
            None => self.shared.inhibit(inhibit).collect(),
        };
        for (index, notify) in told {
            self.notify(index, notify);
        }
    }
}

/// The hypervisor's own reasons.
pub(super) const REASONS: [Inhibit; 3] =
    [Inhibit::Disabled, Inhibit::BlockInterrupts, Inhibit::Nested];

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

    /// By software, or through the IOMMU.
    fn post(&mut self, vcpu: usize, vector: u8, trigger: Trigger) {
        let by_device = self.machine.schedule.pick(2) == 0;
        if by_device && trigger == Trigger::Edge && self.iommu_may_post(vcpu, vector) {
            self.route(vcpu, vector);
            self.device_interrupt(vcpu);
        } else {
            let _ = Hypervisor::post(self, vcpu, vector, trigger);
        }
    }

    fn advance(&mut self, ticks: u32) {
        Hypervisor::advance(self, ticks);
    }

    /// The scheduler moves a vCPU, somebody kicks one for nothing, AVIC goes off and on, the window goes.
    fn disturb(&mut self, how: u64) {
        let mut random = Random::new(how);
        let index = random.below(self.vcpus.len() as u64) as usize;
        match random.below(7) {
            0 => self.leave(index),
            1 => {
                self.unload(index);
                let free: Vec<_> = (0..self.machine.cores.len())
                    .filter(|&cpu| self.vcpus.iter().all(|vcpu| vcpu.cpu != Some(cpu)))
                    .collect();
                let cpu = random.pick(&free);
                self.load(index, cpu);
            }
            2 => self.unmap_window(),
            3 => self.toggle(random.pick(&REASONS), None),
            4 => self.toggle(random.pick(&REASONS), Some(index)),
            5 => {
                self.leave(index);
                if self.vcpus[index].run == Run::Ready {
                    let _ = self.prepare(index);
                }
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
        self.slot(vcpu).mode()
    }

    fn seen(&self, vcpu: usize) -> Seen<'_> {
        let super::VirtualCpu { taken, broadcasts, events, .. } = &self.vcpus[vcpu];
        Seen { taken, broadcasts, events, base: self.slot(vcpu).base().bits() }
    }

    fn word(&self, vcpu: usize, offset: u16) -> u32 {
        self.slot(vcpu).page().load(offset)
    }
}
