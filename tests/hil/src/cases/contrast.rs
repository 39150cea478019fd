//! What others do: a copy of "the APIC is enabled" beside the page.
//!
//! The copy is refreshed where the hypervisor sees a write to SVR, and the upcall is raised again there if it is pending.
//! That is right as long as each such write exits. This model lives in the image only.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vlapic_core::Vector;

use super::upcall::Teller;
use crate::guest::{MAX_VCPUS, apic};
use crate::hypervisor::VirtualMachine;
use crate::svm;
use crate::vmx::{Exit, Reason};

pub(super) const CONTRAST: Teller = Teller {
    name: "contrast",
    starts: |_| {
        for vcpu in 0..MAX_VCPUS {
            ENABLED[vcpu].store(false, Ordering::SeqCst);
            VECTOR[vcpu].store(0, Ordering::SeqCst);
        }
    },
    registers: |machine, vcpu, vector| {
        VECTOR[vcpu].store(vector, Ordering::SeqCst);
        assert(machine, vcpu);
    },
    notifies: |machine, vcpu| {
        if machine.pending[vcpu].swap(1, Ordering::SeqCst) == 0 {
            assert(machine, vcpu);
        }
    },
    on_exit: |machine, vcpu, exit, rcx| {
        if writes_svr(exit, rcx) {
            svr_written(machine, vcpu);
        }
    },
    on_svm_exit: |machine, vcpu, exit, rcx| {
        let svr = match exit.reason {
            svm::Reason::NestedPageFault => {
                exit.guest_physical() == apic::DEFAULT_BASE | u64::from(apic::SVR)
            }
            svm::Reason::Msr => rcx as u32 == apic::msr(apic::SVR),
            _ => false,
        };
        if svr && exit.is_write() {
            svr_written(machine, vcpu);
        }
    },
};

fn svr_written(machine: &VirtualMachine, vcpu: usize) {
    let enabled = machine.slot(vcpu).page().svr().software_enabled();
    ENABLED[vcpu].store(enabled, Ordering::SeqCst);
    if enabled && machine.pending[vcpu].load(Ordering::SeqCst) != 0 {
        assert(machine, vcpu);
    }
}

static ENABLED: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];
static VECTOR: [AtomicU8; MAX_VCPUS] = [const { AtomicU8::new(0) }; MAX_VCPUS];

fn assert(machine: &VirtualMachine, vcpu: usize) {
    if !ENABLED[vcpu].load(Ordering::SeqCst) {
        return;
    }
    if let Some(vector) = Vector::new(VECTOR[vcpu].load(Ordering::SeqCst)) {
        machine.notify(vcpu, machine.slot(vcpu).post_unasked(vector));
    }
}

/// Whether the exit told of a write to SVR.
fn writes_svr(exit: &Exit, rcx: u64) -> bool {
    const WRITE: u64 = 1 << 12;
    let svr = u64::from(apic::SVR);
    match exit.reason {
        Reason::ApicWrite => exit.qualification == svr,
        Reason::ApicAccess => exit.qualification == WRITE | svr,
        Reason::EptViolation => exit.is_write() && exit.guest_physical == apic::DEFAULT_BASE | svr,
        Reason::Wrmsr => rcx as u32 == apic::msr(apic::SVR),
        _ => false,
    }
}
