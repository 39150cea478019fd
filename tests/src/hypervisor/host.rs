//! What the host does: posts, notifications, sleeping and waking, scheduling, time.

use apicv::HostMode;
use apicv::irte::{Common, Posted};
use vlapic_core::{Message, Notify, Receipt, Trigger, Vector};
use vlapic_hal::PhysAddr;

use super::{Hypervisor, KICK, Run, Storage};
use crate::model::{Iommu, PhysicalInterrupt};

impl Hypervisor<'_> {
    /// A device, or another thread, requests an interrupt; then every vCPU takes what it can.
    pub fn post(&mut self, index: usize, vector: u8, trigger: Trigger) -> Receipt {
        let receipt = self.slots[index].request(vector, trigger);
        self.notify(index, receipt.notify);
        self.settle();
        receipt
    }

    /// A device interrupt through VT-d, in posted format, and what comes of it.
    pub fn device_interrupt(&mut self, index: usize, vector: u8, urgent: bool) {
        self.device_posts(index, vector, urgent);
        self.settle();
    }

    /// The remapping hardware's part of a device interrupt.
    ///
    /// # Panics
    /// Not with a descriptor that is aligned.
    pub fn device_posts(&mut self, index: usize, vector: u8, urgent: bool) {
        let descriptor = PhysAddr::new(Storage::descriptor_address(index));
        let entry = Posted { descriptor, vector, urgent, common: Common::default() };
        let entry = entry.encode().expect("an aligned descriptor");
        let extended = self.config.host == HostMode::X2Apic;
        let (memory, bus) = (self.machine.memory().clone(), self.machine.bus().clone());
        let blocked = Iommu::new(memory, bus, extended).interrupt(entry.halves());
        blocked.expect("a remapping entry that posts");
    }

    /// A device sends a message.
    pub fn send(&mut self, message: &Message) {
        let receipts: Vec<_> = self.vm.send(message, None).collect();
        for (index, receipt) in receipts {
            self.notify(index, receipt.notify);
        }
        self.settle();
    }

    /// Carries out what a post asked for.
    pub fn notify(&mut self, index: usize, notify: Notify) {
        match notify {
            Notify::None => {}
            Notify::Interrupt { vector, destination } => {
                self.machine.bus().send(PhysicalInterrupt { destination, vector });
            }
            Notify::Wake => self.wake(index),
            _ => self.kick(index),
        }
        if self.prompt {
            while self.arrive() {}
        }
    }

    /// Lets one physical interrupt in flight reach its CPU. Whether there was one.
    pub fn arrive(&mut self) -> bool {
        if self.machine.bus().is_empty() {
            return false;
        }
        let Some((cpu, outcome)) = self.machine.arrive() else { return true };
        match self.vcpus.iter().position(|vcpu| vcpu.cpu == Some(cpu)) {
            Some(index) if outcome != crate::model::Outcome::Nothing => {
                self.after_outcome(index, outcome);
            }
            // The host runs, with interrupts on.
            _ if !self.machine.cores[cpu].in_guest() => self.host_takes_interrupts(cpu),
            _ => {}
        }
        true
    }

    fn host_takes_interrupts(&mut self, cpu: usize) {
        while let Some(vector) = self.machine.cores[cpu].host_interrupt() {
            self.machine.cores[cpu].physical.end_of_interrupt();
            self.handle(cpu, vector);
        }
    }

    /// Makes a vCPU go through its entry work before it runs on.
    fn kick(&mut self, index: usize) {
        self.wake(index);
        self.vcpus[index].kicked = true;
        if let Some(cpu) = self.vcpus[index].cpu
            && self.machine.cores[cpu].in_guest()
        {
            let outcome = self.machine.cores[cpu].external_interrupt(KICK);
            self.after_outcome(index, outcome);
        }
    }

    /// A sleeping vCPU looks again whether it has something to take.
    pub(super) fn wake(&mut self, index: usize) {
        if let Run::Blocked { .. } = self.vcpus[index].run {
            self.vcpus[index].run = Run::Woken;
        }
    }

    /// The handler of the wakeup vector.
    pub(super) fn wake_sleepers(&mut self, cpu: usize) {
        for index in 0..self.vcpus.len() {
            let sleeps_here = self.vcpus[index].run == Run::Blocked { cpu };
            if sleeps_here && self.slots[index].inbox().wants_waking() {
                self.wake(index);
            }
        }
    }

    /// The guest executed HLT, or was woken from it: sleeps unless there is something to take.
    pub(super) fn halted(&mut self, index: usize) {
        let cpu = self.vcpus[index].cpu.expect("a CPU");
        // On the list first.
        self.vcpus[index].run = Run::Blocked { cpu };
        let input = self.input(index);
        if !self.vcpus[index].driver.block(input) {
            self.vcpus[index].run = Run::Ready;
        }
    }

    /// Lets every vCPU take what it can, until nobody can take anything.
    pub fn settle(&mut self) {
        for _ in 0..2 {
            while self.prompt && self.arrive() {}
            for index in 0..self.vcpus.len() {
                self.boundaries(index);
            }
        }
    }

    /// Lets time pass. Sleeping vCPUs wake for their timers.
    pub fn advance(&mut self, ticks: u32) {
        self.now += u64::from(ticks);
        for core in &mut self.machine.cores {
            core.tick(ticks);
        }
        for index in 0..self.vcpus.len() {
            let deadline = self.vcpus[index].driver.apic().next_deadline();
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.wake(index);
            }
        }
        self.settle();
    }

    /// Puts a vCPU that is on no CPU on this one.
    pub fn load(&mut self, index: usize, cpu: usize) {
        assert_eq!(self.vcpus[index].cpu, None, "already on a CPU");
        let region = self.vcpus[index].region.take().expect("a VMCS that is not current");
        assert!(self.machine.cores[cpu].vmptrld(region).is_none(), "the CPU is taken");
        self.machine.cores[cpu].address_space = index as u64;
        self.vcpus[index].cpu = Some(cpu);
    }

    /// The CPU on whose list a vCPU sleeps goes away.
    pub fn move_sleeper(&mut self, index: usize, to: usize) {
        if let Run::Blocked { cpu } = &mut self.vcpus[index].run {
            *cpu = to;
            if self.slots[index].inbox().move_blocked(to as u32) {
                self.wake(index);
            }
        }
    }

    /// Takes a vCPU off its CPU; the scheduler tells the driver what for by itself.
    pub fn unload(&mut self, index: usize) {
        self.leave(index);
        let cpu = self.vcpus[index].cpu.take().expect("a CPU");
        self.vcpus[index].region = self.machine.cores[cpu].vmclear();
    }

    /// Takes a vCPU out of guest mode.
    pub fn leave(&mut self, index: usize) {
        let Some(cpu) = self.vcpus[index].cpu else { return };
        if self.machine.cores[cpu].in_guest() {
            let outcome = self.machine.cores[cpu].external_interrupt(KICK);
            self.after_outcome(index, outcome);
        }
    }

    /// Registers an upcall vector for a vCPU.
    ///
    /// # Panics
    /// If the vector is illegal.
    pub fn register_upcall(&mut self, index: usize, vector: u8) {
        let pending = &self.storage.pending[index];
        let notify = match &mut self.contrast {
            Some(contrast) => {
                let vector = Vector::new(vector).expect("a legal vector");
                contrast.register(index, vector, &self.slots[index])
            }
            None => self.slots[index].register_upcall(vector, pending).expect("a legal vector"),
        };
        self.notify(index, notify);
        self.settle();
    }

    /// An event for a vCPU: its pending byte, and the upcall that goes with it.
    pub fn notify_upcall(&mut self, index: usize) {
        let notify = match &mut self.contrast {
            Some(contrast) => contrast.notify(index, &self.slots[index], &self.storage.pending),
            None => self.slots[index].notify_upcall(&self.storage.pending[index]),
        };
        self.notify(index, notify);
        self.settle();
    }
}
