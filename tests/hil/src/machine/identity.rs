//! What this machine is: emulator or metal, vendor, features.

use core::arch::x86_64::__cpuid;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use raw_cpuid::{CpuId, CpuIdReaderNative, Hypervisor};
use x86::io::{inb, outw};
use x86::msr::{
    IA32_VMX_BASIC, IA32_VMX_PINBASED_CTLS, IA32_VMX_PROCBASED_CTLS, IA32_VMX_PROCBASED_CTLS2,
};

use super::msr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Machine {
    Unknown,
    Bochs,
    /// QEMU's own translator.
    Qemu,
    /// KVM, whatever sits above it.
    Kvm,
    /// No sign of an emulator or a hypervisor.
    Metal,
}

impl Machine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Bochs => "bochs",
            Self::Qemu => "qemu",
            Self::Kvm => "kvm",
            Self::Metal => "metal",
        }
    }
}

/// What [`detect`] found.
static MACHINE: AtomicU8 = AtomicU8::new(Machine::Unknown as u8);

pub(crate) fn machine() -> Machine {
    let found = MACHINE.load(Ordering::Relaxed);
    [Machine::Bochs, Machine::Qemu, Machine::Kvm, Machine::Metal]
        .into_iter()
        .find(|&machine| machine as u8 == found)
        .unwrap_or(Machine::Unknown)
}

/// Finds out where we run. The first CPU calls this once, early.
pub(crate) fn detect() {
    let machine = match cpuid().get_hypervisor_info().map(|hypervisor| hypervisor.identify()) {
        Some(Hypervisor::QEMU) => Machine::Qemu,
        Some(Hypervisor::KVM) => Machine::Kvm,
        Some(_) => Machine::Unknown,
        None if has_qemu_firmware_port() => Machine::Qemu,
        None if has_bochs_bios() && reads_back_debug_port() => Machine::Bochs,
        None => Machine::Metal,
    };
    MACHINE.store(machine as u8, Ordering::Relaxed);
}

/// The CPU's vendor string.
pub(crate) fn vendor() -> impl fmt::Display {
    /// The string stays in registers: twelve bytes of CPUID leaf 0.
    struct Vendor([u8; 12]);
    impl fmt::Display for Vendor {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(core::str::from_utf8(&self.0).unwrap_or("unknown"))
        }
    }
    let leaf = __cpuid(0);
    let mut text = [0; 12];
    for (bytes, register) in text.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    Vendor(text)
}

/// The features that matter here, as a comma-separated list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features;

impl fmt::Display for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = cpuid().get_feature_info();
        let has = |test: fn(&raw_cpuid::FeatureInfo) -> bool| info.as_ref().is_some_and(test);
        let vmx = has(raw_cpuid::FeatureInfo::has_vmx);
        let svm = cpuid()
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|features| features.has_svm());
        // The "may be 1" half of a control register (SDM Vol. 3D A.3).
        let allowed = |register: u32| {
            if vmx { msr::try_read(register).unwrap_or(0) >> 32 } else { 0 }
        };
        let primary = allowed(IA32_VMX_PROCBASED_CTLS);
        let secondary = if primary & 1 << 31 != 0 { allowed(IA32_VMX_PROCBASED_CTLS2) } else { 0 };
        let pin = allowed(IA32_VMX_PINBASED_CTLS);
        let tertiary = primary & 1 << 17 != 0;
        let avic = svm && __cpuid(0x8000_000a).edx & 1 << 13 != 0;
        let list = [
            ("x2apic", has(raw_cpuid::FeatureInfo::has_x2apic)),
            ("tsc-deadline", has(raw_cpuid::FeatureInfo::has_tsc_deadline)),
            ("vmx", vmx && msr::try_read(IA32_VMX_BASIC).is_some()),
            ("tpr-shadow", primary & 1 << 21 != 0),
            ("ept", secondary & 1 << 1 != 0),
            ("apic-access", secondary & 1 << 0 != 0),
            ("x2apic-virt", secondary & 1 << 4 != 0),
            ("register-virt", secondary & 1 << 8 != 0),
            ("vid", secondary & 1 << 9 != 0),
            ("posted", pin & 1 << 7 != 0),
            ("preemption-timer", pin & 1 << 6 != 0),
            ("tertiary-controls", tertiary),
            ("svm", svm),
            ("avic", avic),
        ];
        let mut names = list.iter().filter(|(_, present)| *present).map(|(name, _)| name);
        if let Some(first) = names.next() {
            formatter.write_str(first)?;
        } else {
            return formatter.write_str("none");
        }
        names.try_for_each(|name| write!(formatter, ",{name}"))
    }
}

pub(crate) fn cpuid() -> CpuId<CpuIdReaderNative> {
    CpuId::new()
}

/// QEMU's firmware configuration device answers `QEMU` to selector 0.
fn has_qemu_firmware_port() -> bool {
    const SELECTOR: u16 = 0x510;
    // SAFETY: a PC has nothing else at this port.
    unsafe { outw(SELECTOR, 0) };
    // SAFETY: reading the data port touches no memory.
    b"QEMU".iter().all(|&byte| unsafe { inb(SELECTOR + 1) } == byte)
}

/// The Bochs BIOS names itself in the last 64 KiB below 1 MiB.
fn has_bochs_bios() -> bool {
    const NAME: &[u8] = b"BOCHS";
    let first = core::ptr::with_exposed_provenance::<u8>(0xf_0000);
    (0..0x1_0000 - NAME.len()).any(|start| {
        NAME.iter().enumerate().all(|(index, &byte)| {
            // SAFETY: the BIOS area is mapped, readable, and lies below 1 MiB.
            unsafe { first.wrapping_add(start + index).read_volatile() == byte }
        })
    })
}

/// Bochs with its debug port on, and QEMU, read back the port's own number there.
fn reads_back_debug_port() -> bool {
    // SAFETY: reading this port touches no memory.
    unsafe { inb(0xe9) == 0xe9 }
}
