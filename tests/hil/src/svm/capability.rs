//! What this processor's SVM has, and switching it on.

use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::{CpuId, CpuIdReaderNative};
use x86::msr::IA32_EFER;

use super::SvmError;
use crate::guest::hypercall;
use crate::machine::frames::OwnedFrame;
use crate::machine::{cpu, msr, smp};

/// EFER.SVME.
pub(super) const SVME: u64 = 1 << 12;

/// Switches SVM on on the calling CPU, unless it is on already, and says what it has.
///
/// Each CPU of the machine calls this once before it runs a guest.
pub(crate) fn enable() -> Result<Capability, SvmError> {
    let capability = Capability::read()?;
    if !capability.nested_paging {
        return Err(SvmError::NoNestedPaging);
    }
    hypercall::use_vmmcall();
    let efer = msr::read(IA32_EFER);
    if efer & SVME == 0 {
        allowed_by_vm_cr()?;
        // SAFETY: CPUID reported SVM and VM_CR lets it be on, so the bit may be set (APM Vol. 2 15.4); it changes nothing
        // for code that uses no SVM instruction.
        unsafe { msr::write(IA32_EFER, efer | SVME) };
    }
    give_host_save_area();
    Ok(capability)
}

/// What CPUID says of SVM (APM Vol. 3, function 8000_000A, EDX).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    /// Nested paging: guests here are given nothing else.
    nested_paging: bool,
    /// #VMEXIT saves the address of the next instruction.
    pub(crate) next_rip: bool,
    /// A flush can be confined to one address space.
    pub(super) flush_by_asid: bool,
}

impl Capability {
    fn read() -> Result<Self, SvmError> {
        let cpuid: CpuId<CpuIdReaderNative> = CpuId::new();
        let features = cpuid.get_extended_processor_and_feature_identifiers();
        if !features.is_some_and(|features| features.has_svm()) {
            return Err(SvmError::NoSvm);
        }
        let features = __cpuid(0x8000_000a).edx;
        Ok(Self {
            nested_paging: features & 1 << 0 != 0,
            next_rip: features & 1 << 3 != 0,
            flush_by_asid: features & 1 << 6 != 0,
        })
    }
}

/// VM_CR must not forbid SVM; where it does and is not locked, that is undone (APM Vol. 2 15.4, 15.30.1).
fn allowed_by_vm_cr() -> Result<(), SvmError> {
    const VM_CR: u32 = 0xc001_0114;
    const LOCK: u64 = 1 << 3;
    const DISABLED: u64 = 1 << 4;
    // A processor without the register has no lock.
    let value = msr::try_read(VM_CR).unwrap_or(0);
    if value & DISABLED == 0 {
        return Ok(());
    }
    // SAFETY: whether SVM may be switched on changes nothing for running code.
    if value & LOCK != 0 || !unsafe { msr::try_write(VM_CR, value & !DISABLED) } {
        return Err(SvmError::LockedByFirmware);
    }
    Ok(())
}

/// Gives the processor the page in which VMRUN keeps the host's state, once for each CPU.
fn give_host_save_area() {
    const VM_HSAVE_PA: u32 = 0xc001_0117;
    static AREAS: [AtomicU64; smp::MAX_CPUS] = [const { AtomicU64::new(0) }; smp::MAX_CPUS];
    let area = &AREAS[cpu::this_cpu()];
    // Relaxed: only this CPU uses its own.
    if area.load(Ordering::Relaxed) != 0 {
        return;
    }
    let frame = OwnedFrame::new();
    let address = frame.physical_address();
    // The processor uses it from now on.
    core::mem::forget(frame);
    area.store(address, Ordering::Relaxed);
    // SAFETY: a frame of its own, page-aligned, that nobody else will ever use (APM Vol. 2 15.30.4).
    unsafe { msr::write(VM_HSAVE_PA, address) };
}
