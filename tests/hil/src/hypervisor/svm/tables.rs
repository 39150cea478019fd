//! What the vCPUs of a VM under AVIC share, and the doorbell.

use avic::{
    Backing, Capabilities, LogicalPage, MsrPermissions, PhysicalPage, Shared, Storage, TableError,
    Window,
};
use spin::Mutex;
use vlapic_core::Vm;
use vlapic_hal::Doorbell;
use vlapic_hal::x86::{AvicDoorbell, LinearMap, NativeCpuid};

use crate::guest::MAX_VCPUS;
use crate::hypervisor::storage;
use crate::machine::{cpu, memory, smp};

static PHYSICAL: [PhysicalPage; 1] = [const { PhysicalPage::new() }; 1];
static LOGICAL: LogicalPage = LogicalPage::new();
/// In frames of their own: all ones at the start, they would be a good part of the image.
static MSR_PERMISSIONS: [Mutex<Option<&'static MsrPermissions>>; MAX_VCPUS] =
    [const { Mutex::new(None) }; MAX_VCPUS];

/// The tables of APIC IDs and the register window.
pub(in super::super) struct Tables {
    pub(in super::super) shared: &'static Shared<'static>,
    pub(super) window: &'static Window,
}

impl Tables {
    /// For the vCPUs of `vm`. No vCPU of another VM runs any more.
    pub(in super::super) fn new(vm: Vm<'static, Backing>) -> Result<Self, TableError> {
        let memory = Storage { physical: &PHYSICAL, logical: &LOGICAL, routes: &[] };
        // SAFETY: the image's statics, which are all that is asked for, are mapped to themselves.
        let translate = unsafe { LinearMap::identity() };
        let (shared, window) = storage::shared(Shared::new(vm, memory, &translate)?);
        Ok(Self { shared, window })
    }
}

/// The map of a vCPU under AVIC.
pub(super) fn msr_permissions(index: usize) -> &'static MsrPermissions {
    MSR_PERMISSIONS[index].lock().get_or_insert_with(|| memory::place(MsrPermissions::new()))
}

/// What this processor has.
pub(super) fn capabilities() -> Capabilities {
    Capabilities::detect(&NativeCpuid)
}

/// Rings the doorbell of another CPU.
pub(in super::super) fn ring(destination: u32) {
    if destination == smp::apic_id(cpu::this_cpu()) {
        return;
    }
    // SAFETY: CPL 0; the driver asks for a doorbell only where it was granted AVIC, and only for APIC IDs of 8 bits, since
    // it was told to trust no more.
    let doorbell = unsafe { AvicDoorbell::new() };
    // It can only fail for wider IDs.
    let _ = doorbell.ring(destination);
}
