//! What goes on around the vCPUs of a storm: devices, start-ups, the host's meddling.

use vlapic_core::{Delivery, Outcome as Acceptance, Trigger};

use super::Storm;
use super::program::{LEVEL, POSTED, REQUESTED, Role, role};
use crate::avic_hypervisor::subject::REASONS;
use crate::avic_hypervisor::{Run, Storage};

impl Storm<'_, '_> {
    /// A device interrupts, through the IOMMU or through software.
    pub(super) fn device(&mut self) {
        let vcpu = self.pick(self.programs.len());
        if !self.sends || self.pick(3) != 0 {
            return;
        }
        match self.pick(4) {
            0 if self.ledger.is_free(vcpu, POSTED) => {
                self.ledger.send(vcpu, POSTED);
                let address = Storage::irte_address(vcpu);
                self.hypervisor.machine.iommu.interrupt(vcpu as u16, address);
            }
            1 if self.ledger.is_free(vcpu, REQUESTED) => {
                self.request(vcpu, REQUESTED, Trigger::Edge)
            }
            2 if !self.level[vcpu] && self.ledger.is_settled(vcpu) => {
                self.level[vcpu] = true;
                self.request(vcpu, LEVEL, Trigger::Level);
            }
            3 if !self.ledger.upcall_is_due(vcpu) => self.upcall(vcpu),
            _ => {}
        }
    }

    /// An event for a vCPU: whatever its APIC is doing, the upcall comes once, at the latest when it is enabled.
    fn upcall(&mut self, vcpu: usize) {
        let pending = &self.hypervisor.storage().pending[vcpu];
        self.ledger.send_upcall(vcpu);
        let notify = self.hypervisor.slot(vcpu).notify_upcall(pending);
        self.hypervisor.notify(vcpu, notify);
    }

    fn request(&mut self, vcpu: usize, vector: u8, trigger: Trigger) {
        let receipt = self.hypervisor.slot(vcpu).request(vector, trigger);
        let accepted = receipt.outcome == Acceptance::Accepted;
        assert!(accepted || !self.ledger.is_settled(vcpu), "vCPU {vcpu} refuses");
        if accepted {
            self.ledger.send(vcpu, vector);
        }
        self.hypervisor.notify(vcpu, receipt.notify);
    }

    /// SIPIs for those that were put through INIT, NMIs for those that are dormant.
    pub(super) fn start_somebody(&mut self) {
        if self.sends && self.pick(20) == 0 {
            let dormant: Vec<_> =
                (0..self.programs.len()).filter(|&vcpu| role(vcpu) == Role::Dormant).collect();
            if !dormant.is_empty() {
                let vcpu = dormant[self.pick(dormant.len())];
                let receipt = self.hypervisor.slot(vcpu).receive(Delivery::Nmi);
                self.hypervisor.notify(vcpu, receipt.notify);
            }
        }
        if self.starting.is_empty() {
            return;
        }
        let place = self.pick(self.starting.len());
        let vcpu = self.starting[place];
        if self.hypervisor.vcpus[vcpu].run != Run::WaitsForSipi {
            // The INIT is still under way, its sender was itself put through INIT, or two came as one.
            if !self.sends && self.pick(400) == 0 {
                let receipt = self.hypervisor.slot(vcpu).receive(Delivery::Init);
                self.hypervisor.notify(vcpu, receipt.notify);
            }
            return;
        }
        let receipt = self.hypervisor.slot(vcpu).receive(Delivery::Startup { page: 8 });
        self.hypervisor.notify(vcpu, receipt.notify);
        self.starting.swap_remove(place);
    }

    /// Inhibits come and go; the window is unmapped; somebody is kicked for nothing.
    pub(super) fn meddle(&mut self) {
        if !self.sends || self.pick(10) != 0 {
            return;
        }
        let vcpu = self.pick(self.programs.len());
        let reason = REASONS[self.pick(REASONS.len())];
        match self.pick(9) {
            8 => self.fill_log(),
            0 => self.hypervisor.unmap_window(),
            1 => self.hypervisor.kick(vcpu),
            2 => self.hypervisor.toggle(reason, None),
            3 if !self.hypervisor.shared.inhibits().is_empty() => {
                self.hypervisor.toggle(reason, None);
            }
            _ => self.hypervisor.toggle(reason, Some(vcpu)),
        }
    }

    /// Another VM's interrupts fill the log, some of ours among them are lost.
    fn fill_log(&mut self) {
        let log = &mut self.hypervisor.machine.iommu.log;
        for _ in 0..512 {
            log.append(0xffff, u32::MAX);
        }
        self.report.overflows += 1;
    }
}
