//! Saving and restoring the VM, in the order that the integrator's guide gives.

use std::sync::atomic::Ordering;

use vlapic_core::state::STATE_LENGTH;

use super::{Hypervisor, Run};
use crate::migrate::{Doing, Movable, Moved};
use crate::steps::Subject;

impl Movable for Hypervisor<'_> {
    fn now(&self) -> u64 {
        self.now
    }

    fn save(&mut self) -> Vec<Moved> {
        for index in 0..self.vcpus.len() {
            self.leave(index);
        }
        let now = self.now;
        let mut saved = Vec::new();
        for index in 0..self.vcpus.len() {
            let vcpu = &mut self.vcpus[index];
            assert_eq!((vcpu.injects, vcpu.in_flight), (None, None), "an injection");
            let mut state = [0; STATE_LENGTH];
            vcpu.driver.apic_mut().export_state(now, &mut state);
            let doing = match vcpu.run {
                Run::Ready => Doing::Running,
                Run::Blocked { .. } | Run::Woken => Doing::Halted,
                Run::WaitsForSipi => Doing::Waiting,
            };
            let interrupt_flag = vcpu.interrupt_flag;
            let pending = &self.storage.pending[index];
            saved.push(Moved::new(state, &self.seen(index), interrupt_flag, doing, pending));
        }
        saved
    }

    fn restore(&mut self, vcpus: &[Moved], now: u64) {
        for index in 0..self.vcpus.len() {
            self.leave(index);
        }
        self.now = now;
        for (index, moved) in vcpus.iter().enumerate() {
            let vcpu = &mut self.vcpus[index];
            let corrected = vcpu.driver.apic_mut().import_state(now, &moved.state);
            assert!(corrected.is_ok_and(|corrections| corrections.is_empty()), "{corrected:?}");
            vcpu.interrupt_flag = moved.interrupt_flag;
            vcpu.run = match moved.doing {
                Doing::Running => Run::Ready,
                // It looks whether there is something to wake for.
                Doing::Halted => Run::Woken,
                Doing::Waiting => Run::WaitsForSipi,
            };
            (vcpu.injects, vcpu.in_flight, vcpu.kicked) = (None, None, true);
            vcpu.taken.clone_from(&moved.taken);
            vcpu.broadcasts.clone_from(&moved.broadcasts);
            vcpu.events.clone_from(&moved.events);
            self.storage.pending[index].store(moved.pending, Ordering::SeqCst);
        }
    }
}
