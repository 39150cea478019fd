//! What the host does: posts, notifications, sleeping and waking, scheduling, the IOMMU, time.

use avic::{GaLog, GuestTarget, IommuRegisters};
use vlapic_core::{Inbox, Message, Notify, Receipt, Trigger, Vector};
use vlapic_hal::{PhysAddr, WriteMsr};

use super::{Broken, Hypervisor, KICK, Run, Storage};
use crate::avic_model::{self, DOORBELL_MSR, Event};
use crate::model::PhysicalInterrupt;

impl Hypervisor<'_> {
    /// A device, or another thread, requests an interrupt; then every vCPU takes what it can.
    pub fn post(&mut self, index: usize, vector: u8, trigger: Trigger) -> Receipt {
        let receipt = self.slot(index).request(vector, trigger);
        self.notify(index, receipt.notify);
        self.settle();
        receipt
    }

    /// A device sends a message.
    pub fn send(&mut self, message: &Message) {
        let receipts: Vec<_> = self.shared.vm().send(message, None).collect();
        for (index, receipt) in receipts {
            self.notify(index, receipt.notify);
        }
        self.settle();
    }

    /// A device's interrupt through the IOMMU, with the vector that [`route`](Self::route) gave it.
    pub fn device_interrupt(&mut self, index: usize) {
        let address = Storage::irte_address(index);
        self.machine.iommu.interrupt(index as u16, address);
        self.settle();
    }

    /// Has the vCPU's remapping entry post `vector` to it.
    ///
    /// # Panics
    /// Not with an aligned page.
    pub fn route(&mut self, index: usize, vector: u8) {
        let cell = &self.storage.irtes[index];
        let entry = GuestTarget {
            vector,
            backing_page: PhysAddr::new(Storage::page_address(index)),
            destination: 0,
            running: false,
            log: true,
            tag: index as u32,
            suppress_page_faults: false,
        };
        cell.disable();
        self.machine.iommu.invalidate_interrupt_table();
        cell.store_disabled(entry.encode().expect("an aligned page"));
        self.machine.iommu.invalidate_interrupt_table();
        let notify = self.route_of(index).attach(self.shared, index).expect("a vCPU of the VM");
        self.notify(index, notify);
    }

    /// Takes the entries out of the IOMMU's log, tells those they name, and starts the log again if it overflowed.
    pub(super) fn read_log(&mut self) {
        if self.config.broken == Broken::IgnoresLog {
            return;
        }
        let mut log = GaLog::new(&self.storage.log);
        let mut registers = Registers(&mut self.machine.iommu.log);
        let mut named: Vec<_> = log.drain(&mut registers).filter_map(|entry| entry.tag()).collect();
        // Other VMs' entries are in it as well.
        named.retain(|&tag| (tag as usize) < self.vcpus.len());
        if log.overflowed(&registers) && self.config.broken == Broken::IgnoresOverflow {
            log.restart(&mut registers, 10).expect("a log that stops");
        } else if log.overflowed(&registers) {
            log.restart(&mut registers, 10).expect("a log that stops");
            named = (0..self.vcpus.len() as u32).collect();
        }
        for index in named {
            let notify = self.slot(index as usize).inbox().announce();
            self.notify(index as usize, notify);
        }
    }

    /// Carries out what a post asked for.
    pub fn notify(&mut self, index: usize, notify: Notify) {
        match notify {
            Notify::None => {}
            Notify::Doorbell { .. } if self.config.broken == Broken::RingsNoDoorbell => {}
            Notify::Doorbell { destination } => {
                let rung = self.machine.cores[0].write_msr(DOORBELL_MSR, destination.into());
                assert_eq!(rung, Ok(()), "a doorbell that can be rung");
            }
            Notify::Wake => self.wake(index),
            Notify::Kick => self.kick(index),
            Notify::Interrupt { .. } => unreachable!("not on this processor"),
            _ => unreachable!("a notification that this hypervisor does not know"),
        }
        while self.prompt && self.arrive() {}
    }

    /// Lets one thing in flight arrive. Whether there was one.
    fn arrive(&mut self) -> bool {
        let Some(event) = self.machine.advance() else { return false };
        if let Event::Interrupt { destination } = event {
            let cpu = (destination - self.config.first_cpu_id) as usize;
            match self.vcpus.iter().position(|vcpu| vcpu.cpu == Some(cpu)) {
                Some(index) if self.machine.cores[cpu].in_guest() => self.leave(index),
                _ => self.host_interrupts(cpu),
            }
        }
        true
    }

    /// Makes a vCPU go through its entry work before it runs on.
    pub(super) fn kick(&mut self, index: usize) {
        if self.config.broken == Broken::IgnoresKicks {
            return;
        }
        self.wake(index);
        self.vcpus[index].kicked = true;
        if let Some(cpu) = self.vcpus[index].cpu
            && self.machine.cores[cpu].in_guest()
        {
            let destination = self.machine.cores[cpu].id();
            let kick = PhysicalInterrupt { destination, vector: KICK };
            self.machine.bus().send(kick);
        }
    }

    /// A sleeping vCPU looks again whether it has something to take.
    pub(super) fn wake(&mut self, index: usize) {
        let run = &mut self.vcpus[index].run;
        match run {
            Run::Parking if self.config.broken == Broken::ForgetsEarlyWakes => {}
            Run::Parking | Run::Blocked => *run = Run::Woken,
            _ => {}
        }
    }

    /// The guest executed HLT, or was woken from it: sleeps unless there is something to take.
    pub(super) fn halted(&mut self, index: usize) {
        self.park(index);
        if self.vcpus[index].run == Run::Parking {
            self.vcpus[index].run = Run::Blocked;
        }
    }

    /// The first half of going to sleep: a wake-up counts from here on.
    pub(super) fn park(&mut self, index: usize) {
        let input = self.input(index);
        let vcpu = &mut self.vcpus[index];
        if self.config.broken == Broken::SleepsInSilence {
            vcpu.run = Run::Parking;
            return;
        }
        let sleeps = vcpu.driver.block(input) || self.config.broken == Broken::SleepsAnyway;
        vcpu.run = if sleeps { Run::Parking } else { Run::Ready };
    }

    /// Lets every vCPU take what it can, until nobody can take anything.
    pub fn settle(&mut self) {
        for _ in 0..3 {
            while self.prompt && self.arrive() {}
            for index in 0..self.vcpus.len() {
                self.boundaries(index);
            }
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, ticks: u32) {
        self.now += u64::from(ticks);
        for index in 0..self.vcpus.len() {
            let now = self.now;
            let due = |time: Option<u64>| time.is_some_and(|time| time <= now);
            if due(self.vcpus[index].exit_by) {
                self.leave(index);
            }
            if due(self.vcpus[index].driver.apic().next_deadline()) {
                self.wake(index);
            }
        }
        self.settle();
    }

    /// Takes a vCPU off its CPU, wherever it is. One that wants to run on is preempted.
    pub fn unload(&mut self, index: usize) {
        self.leave(index);
        if self.vcpus[index].run != Run::Blocked {
            self.vcpus[index].driver.preempt();
        }
        self.vcpus[index].cpu = None;
    }

    /// Puts a vCPU that is on no CPU on this one.
    ///
    /// # Panics
    /// If either is taken.
    pub fn load(&mut self, index: usize, cpu: usize) {
        assert_eq!(self.vcpus[index].cpu, None, "already on a CPU");
        assert!(self.vcpus.iter().all(|vcpu| vcpu.cpu != Some(cpu)), "the CPU is taken");
        self.vcpus[index].cpu = Some(cpu);
    }

    /// Takes a vCPU out of guest mode.
    pub fn leave(&mut self, index: usize) {
        let Some(cpu) = self.vcpus[index].cpu else { return };
        if self.machine.cores[cpu].in_guest() {
            self.machine.cores[cpu].physical_interrupt(KICK);
            let outcome = self.machine.cores[cpu].poll();
            let exit = outcome.exit().expect("physical interrupts leave the guest");
            let _ = self.after_exit(index, exit, None);
        }
    }

    /// Registers an upcall vector for a vCPU.
    ///
    /// # Panics
    /// If the vector is illegal.
    pub fn register_upcall(&mut self, index: usize, vector: u8) {
        let (pending, slot) = (&self.storage.pending[index], self.slot(index));
        let notify = match &mut self.contrast {
            Some(contrast) => {
                contrast.register(index, Vector::new(vector).expect("a legal vector"), slot)
            }
            None => slot.register_upcall(vector, pending).expect("a legal vector"),
        };
        self.notify(index, notify);
        self.settle();
    }

    /// An event for a vCPU: its pending byte, and the upcall that goes with it.
    pub fn notify_upcall(&mut self, index: usize) {
        let slot = self.slot(index);
        let notify = match &mut self.contrast {
            Some(contrast) => contrast.notify(index, slot, &self.storage.pending),
            None => slot.notify_upcall(&self.storage.pending[index]),
        };
        self.notify(index, notify);
        self.settle();
    }

    /// Whether `vector` may be posted through the IOMMU: it exists, and the APIC accepts, which the IOMMU does not ask.
    pub(super) fn iommu_may_post(&self, index: usize, vector: u8) -> bool {
        Vector::new(vector).is_some() && self.slot(index).accepts()
    }
}

/// The registers of the model's IOMMU.
struct Registers<'r, 'm>(&'r mut avic_model::GaLog<'m>);

impl IommuRegisters for Registers<'_, '_> {
    fn read(&self, offset: u32) -> u64 {
        self.0.read(offset)
    }

    fn write(&mut self, offset: u32, value: u64) {
        self.0.write(offset, value);
    }
}
