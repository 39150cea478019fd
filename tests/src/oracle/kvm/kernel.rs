//! The kernel's side: a VM with its own interrupt controllers.

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS, Msrs, kvm_enable_cap, kvm_lapic_state,
    kvm_msi, kvm_msr_entry, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// IA32_APIC_BASE, and its value in x2APIC mode at the default address.
const APIC_BASE: u32 = 0x1B;
const XAPIC: u64 = 0xFEE0_0800;
const X2APIC: u64 = 0xFEE0_0C00;

/// Why there is no kernel to ask.
#[derive(Debug)]
pub enum Unavailable {
    /// /dev/kvm is not there or not ours to open.
    NoKvm(kvm_ioctls::Error),
    /// An ioctl that is needed failed.
    Ioctl(&'static str, kvm_ioctls::Error),
}

impl core::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoKvm(error) => write!(f, "/dev/kvm cannot be opened: {error}"),
            Self::Ioctl(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl core::error::Error for Unavailable {}

/// A VM of the kernel's whose vCPUs are in x2APIC mode. None of them ever runs.
#[derive(Debug)]
pub struct Kernel {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
}

/// The registers of one vCPU, each at its page offset.
#[derive(Clone)]
pub(super) struct Registers(kvm_lapic_state);

fn ioctl<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, Unavailable> {
    result.map_err(|error| Unavailable::Ioctl(what, error))
}

impl Kernel {
    /// A VM with `vcpus` vCPUs whose IDs count from zero.
    ///
    /// # Errors
    /// [`Unavailable`] where there is no usable /dev/kvm.
    pub fn new(vcpus: usize) -> Result<Self, Unavailable> {
        let kvm = Kvm::new().map_err(Unavailable::NoKvm)?;
        let vm = ioctl("KVM_CREATE_VM", kvm.create_vm())?;
        ioctl("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
        let mut format = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        format.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS);
        ioctl("KVM_CAP_X2APIC_API", vm.enable_cap(&format))?;
        let cpuid = ioctl(
            "KVM_GET_SUPPORTED_CPUID",
            kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES),
        )?;
        let vcpus = (0..vcpus)
            .map(|id| {
                let vcpu = ioctl("KVM_CREATE_VCPU", vm.create_vcpu(id as u64))?;
                let mut cpuid = cpuid.clone();
                for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
                    // x2APIC and the TSC-deadline timer.
                    entry.ecx |= 1 << 21 | 1 << 24;
                    entry.ebx = entry.ebx & 0x00FF_FFFF | (id as u32) << 24;
                }
                ioctl("KVM_SET_CPUID2", vcpu.set_cpuid2(&cpuid))?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>, Unavailable>>()?;
        let kernel = Self { vm, vcpus };
        for vcpu in 0..kernel.vcpus.len() {
            kernel.write(vcpu, APIC_BASE, XAPIC)?;
            kernel.write(vcpu, APIC_BASE, X2APIC)?;
        }
        Ok(kernel)
    }

    /// RDMSR; `None` is #GP.
    pub(super) fn read(&self, vcpu: usize, msr: u32) -> Result<Option<u64>, Unavailable> {
        let mut msrs = one(msr, 0);
        let done = ioctl("KVM_GET_MSRS", self.vcpus[vcpu].get_msrs(&mut msrs))?;
        Ok((done == 1).then(|| msrs.as_slice()[0].data))
    }

    /// WRMSR; `false` is #GP.
    pub(super) fn write(&self, vcpu: usize, msr: u32, value: u64) -> Result<bool, Unavailable> {
        Ok(ioctl("KVM_SET_MSRS", self.vcpus[vcpu].set_msrs(&one(msr, value)))? == 1)
    }

    /// How many APICs accepted the message.
    pub(super) fn msi(&self, address: u32, data: u32) -> Result<usize, Unavailable> {
        let msi = kvm_msi { address_lo: address, data, ..Default::default() };
        // The kernel's answer where nobody is addressed is -1, which reads as EPERM.
        const EPERM: i32 = 1;
        match self.vm.signal_msi(msi) {
            Ok(delivered) => Ok(usize::try_from(delivered).unwrap_or(0)),
            Err(error) if error.errno() == EPERM => Ok(0),
            Err(error) => Err(Unavailable::Ioctl("KVM_SIGNAL_MSI", error)),
        }
    }

    pub(super) fn registers(&self, vcpu: usize) -> Result<Registers, Unavailable> {
        Ok(Registers(ioctl("KVM_GET_LAPIC", self.vcpus[vcpu].get_lapic())?))
    }

    pub(super) fn set_registers(
        &self,
        vcpu: usize,
        registers: &Registers,
    ) -> Result<(), Unavailable> {
        ioctl("KVM_SET_LAPIC", self.vcpus[vcpu].set_lapic(&registers.0))?;
        // PPR is computed with the in-service count of before; reading it computes it anew.
        self.read(vcpu, vlapic_core::Register::Ppr.msr()).map(drop)
    }

    /// Whether an NMI waited; asking takes it.
    pub(super) fn take_nmi(&self, vcpu: usize) -> Result<bool, Unavailable> {
        let vcpu = &self.vcpus[vcpu];
        let mut events: kvm_vcpu_events = ioctl("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?;
        let waited = events.nmi.pending != 0 || events.nmi.injected != 0;
        if waited {
            events.nmi.pending = 0;
            events.nmi.injected = 0;
            events.flags |= kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING;
            ioctl("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&events))?;
        }
        Ok(waited)
    }
}

impl Registers {
    pub(super) fn load(&self, offset: u16) -> u32 {
        let at = usize::from(offset);
        let bytes: [i8; 4] = core::array::from_fn(|index| self.0.regs[at + index]);
        u32::from_le_bytes(bytes.map(|byte| byte as u8))
    }

    pub(super) fn store(&mut self, offset: u16, value: u32) {
        let at = usize::from(offset);
        for (place, byte) in self.0.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
            *place = byte as i8;
        }
    }
}

fn one(index: u32, data: u64) -> Msrs {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).unwrap_or_else(|_| unreachable!("one entry always fits"))
}
