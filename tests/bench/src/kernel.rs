//! The kernel's own local APIC, through /dev/kvm: what a hypervisor pays that leaves the APIC to it and calls from user
//! space. Each operation is one ioctl, and most of its cost is the way into the kernel and out.

use std::hint::black_box;
use std::rc::Rc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::contender::Contender;

/// A VM with one vCPU in x2APIC mode that never runs.
struct Kernel {
    vcpu: VcpuFd,
    /// The vCPU lives in it.
    _vm: VmFd,
}

/// Why there is no kernel to ask, if there is none.
pub(crate) fn unavailable() -> Option<String> {
    Kernel::new().err().map(|error| format!("the kernel's APIC: /dev/kvm is of no use: {error}"))
}

/// RDMSR of an x2APIC register.
pub(crate) fn read(msr: u32) -> Option<Contender> {
    let kernel = Kernel::new().ok()?;
    Some(Contender::new("KVM_GET_MSRS", (kernel, msrs(msr, 0)?), |(kernel, msrs), _| {
        let _ = black_box(kernel.vcpu.get_msrs(black_box(msrs)));
    }))
}

/// WRMSR of an x2APIC register.
pub(crate) fn write(msr: u32, value: u64) -> Option<Contender> {
    let kernel = Kernel::new().ok()?;
    Some(Contender::new("KVM_SET_MSRS", (kernel, msrs(msr, value)?), |(kernel, msrs), _| {
        let _ = black_box(kernel.vcpu.set_msrs(black_box(msrs)));
    }))
}

/// All registers out.
pub(crate) fn export() -> Option<Contender> {
    let kernel = Kernel::new().ok()?;
    Some(Contender::new("KVM_GET_LAPIC", kernel, |kernel, _| {
        let _ = black_box(kernel.vcpu.get_lapic());
    }))
}

/// All registers in.
pub(crate) fn import() -> Option<Contender> {
    let kernel = Kernel::new().ok()?;
    let registers = Rc::new(kernel.vcpu.get_lapic().ok()?);
    Some(Contender::new("KVM_SET_LAPIC", kernel, move |kernel, _| {
        let _ = black_box(kernel.vcpu.set_lapic(black_box(&registers)));
    }))
}

impl Kernel {
    fn new() -> Result<Self, kvm_ioctls::Error> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
            // x2APIC.
            entry.ecx |= 1 << 21;
        }
        vcpu.set_cpuid2(&cpuid)?;
        let kernel = Self { vcpu, _vm: vm };
        for (msr, value) in [(0x1B, 0xFEE0_0900), (0x1B, 0xFEE0_0D00), (0x80F, 0x1FF)] {
            if let Some(msrs) = msrs(msr, value) {
                kernel.vcpu.set_msrs(&msrs)?;
            }
        }
        Ok(kernel)
    }
}

fn msrs(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).ok()
}
