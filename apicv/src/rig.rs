//! A vCPU and its VMCS, for tests.

use vlapic_core::{ApicPage, EntryInput, Profile, Slot};
use vlapic_hal::fake::MemoryVmcs;
use vlapic_hal::{PhysAddr, Vmcs};

use crate::descriptor::PostedDescriptor;
use crate::field;
use crate::msr_bitmap::MsrBitmap;
use crate::posting::{HostMode, NotificationVectors, Posting};
use crate::program::Addresses;

pub(crate) type Fields = MemoryVmcs<64>;

pub(crate) const INPUT: EntryInput =
    EntryInput { now: 0, cpu: 3, interruptible: true, injecting: false };
pub(crate) const RUNNING: u8 = 0xF2;
pub(crate) const WAKEUP: u8 = 0xF3;

/// With what a hypervisor has set before.
pub(crate) fn fresh() -> Fields {
    let mut vmcs = Fields::new();
    for (field, value) in [
        (field::PIN_CONTROLS, 0x1E),
        (field::PRIMARY_CONTROLS, 0x8400_61F2),
        (field::SECONDARY_CONTROLS, 0x2),
        (field::EXIT_CONTROLS, 0x3_6FFF),
    ] {
        vmcs.write(field, value).unwrap();
    }
    vmcs
}

pub(crate) fn slot<'a>(
    page: &'a ApicPage,
    descriptor: &'a PostedDescriptor,
) -> Slot<'a, Posting<'a>> {
    let vectors = NotificationVectors { running: RUNNING, wakeup: WAKEUP };
    Slot::new(page, 0, Profile::intel(), Posting::new(descriptor, vectors, HostMode::X2Apic))
}

pub(crate) fn addresses(bitmap: &MsrBitmap) -> Addresses<'_> {
    Addresses {
        virtual_apic: Some(PhysAddr::new(0x11_1000)),
        apic_access: Some(PhysAddr::new(0x22_2000)),
        posted_interrupt_descriptor: Some(PhysAddr::new(0x33_3040)),
        msr_bitmap: Some((bitmap, PhysAddr::new(0x44_4000))),
        pid_pointer_table: Some((PhysAddr::new(0x55_5008), 3)),
    }
}
