//! Where the broadcast of an EOI can be seen.

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_ioapic_state,
    kvm_irq_routing_entry, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::{Unavailable, ioctl};

/// Pins of the I/O APIC that user space is said to have: one for each vector from 16 on.
pub(super) const PINS: u64 = 240;

/// Routes a level-triggered interrupt of every vector to everybody, so that the kernel tells user
/// space of every EOI.
pub(super) fn route_all(vm: &VmFd) -> Result<(), Unavailable> {
    let entries: Vec<_> = (0..PINS as u32)
        .map(|gsi| {
            let mut entry =
                kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = 0xFEEF_F000;
            entry.u.msi.data = 0xC000 | (gsi + 16);
            entry
        })
        .collect();
    let routes = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| Unavailable::Guest("too many routes".to_owned()))?;
    ioctl("KVM_SET_GSI_ROUTING", vm.set_gsi_routing(&routes))
}

/// The kernel's own I/O APIC: each of its pins says that it waits for an EOI.
pub(super) struct Watched {
    armed: kvm_irqchip,
}

/// The vectors that are watched.
pub(in super::super) const WATCHED: [u8; 24] = [
    0x31, 0x32, 0x41, 0x51, 0x5F, 0x61, 0x92, 0xE0, 0xF3, 0xFF, 0x10, 0x11, 0x20, 0x2F, 0x45, 0x66,
    0x77, 0x88, 0x99, 0xA0, 0xB3, 0xC7, 0xD1, 0xEE,
];

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const EVERYBODY: u64 = 0xFF << 56;

impl core::fmt::Debug for Watched {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Watched {
    pub(super) fn new(vm: &VmFd) -> Result<Self, Unavailable> {
        let mut armed = read(vm)?;
        let mut pins = pins(&armed);
        for (pin, vector) in pins.redirtbl.iter_mut().zip(WATCHED) {
            pin.bits = u64::from(vector) | REMOTE_IRR | LEVEL | MASKED | EVERYBODY;
        }
        pins.irr = 0;
        armed.chip.ioapic = pins;
        ioctl("KVM_SET_IRQCHIP", vm.set_irqchip(&armed))?;
        Ok(Self { armed })
    }

    /// The vector whose EOI arrived since the last time.
    pub(super) fn take(&self, vm: &VmFd) -> Result<Option<u8>, Unavailable> {
        let now = pins(&read(vm)?);
        let mut ended = None;
        for (pin, vector) in now.redirtbl.iter().zip(WATCHED) {
            // SAFETY: every bit pattern is a u64.
            let bits = unsafe { pin.bits };
            if bits & REMOTE_IRR == 0 {
                ended = Some(vector);
            }
        }
        if ended.is_some() {
            ioctl("KVM_SET_IRQCHIP", vm.set_irqchip(&self.armed))?;
        }
        Ok(ended)
    }
}

fn read(vm: &VmFd) -> Result<kvm_irqchip, Unavailable> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    ioctl("KVM_GET_IRQCHIP", vm.get_irqchip(&mut chip))?;
    Ok(chip)
}

fn pins(chip: &kvm_irqchip) -> kvm_ioapic_state {
    // SAFETY: the chip asked for is the I/O APIC, so that this is the variant the kernel filled in.
    unsafe { chip.chip.ioapic }
}
