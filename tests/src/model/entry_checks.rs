//! The checks that VM entry makes on the controls (SDM "Checks on VMX Controls").

use std::sync::Arc;

use super::capability::Capability;
use super::controls::{Controls, primary};
use super::field;
use super::knobs::Knobs;
use super::memory::Memory;
use super::page::Page;
use super::vmcs::VmcsRegion;

/// What a VM entry failed on. The processor itself only reports VM-instruction error 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each name says what is wrong")]
pub enum Violation {
    PinBasedReserved,
    PrimaryReserved,
    SecondaryReserved,
    TertiaryReserved,
    ExitControlsReserved,
    MsrBitmapAddress,
    VirtualApicAddress,
    TprThresholdReserved,
    TprThresholdAboveVtpr,
    ApicAccessAddress,
    X2ApicWithoutTprShadow,
    RegisterVirtualizationWithoutTprShadow,
    DeliveryWithoutTprShadow,
    X2ApicWithApicAccesses,
    DeliveryWithoutExternalInterruptExiting,
    PostedWithoutDelivery,
    PostedWithoutAcknowledge,
    NotificationVector,
    DescriptorAddress,
    IpiVirtualizationWithoutDelivery,
    IpiVirtualizationWithoutTprShadow,
    PidPointerTableAddress,
}

/// Everything that is wrong, in the order of [`Violation`]; empty if the entry passes.
pub(super) fn violations(
    vmcs: &VmcsRegion,
    memory: &Arc<Memory<'_>>,
    knobs: &Knobs,
) -> Vec<Violation> {
    let controls = Controls::of(vmcs);
    let mut found = Vec::new();
    let mut require = |holds: bool, violation| {
        if !holds {
            found.push(violation);
        }
    };
    reserved_bits(vmcs, &mut require);
    let address = Addresses(vmcs.capability());
    tpr_shadow(&controls, address, memory, &mut require);
    other_controls(&controls, address, &mut require);
    require(
        !(knobs.ipiv_needs_delivery && controls.ipi_virtualization)
            || controls.virtual_interrupt_delivery,
        Violation::IpiVirtualizationWithoutDelivery,
    );
    if knobs.ipiv_entry_checks && controls.ipi_virtualization {
        let table = controls.pid_pointer_table_address;
        let last_entry = table.saturating_add(8 * u64::from(controls.last_pid_pointer_index));
        require(controls.tpr_shadow, Violation::IpiVirtualizationWithoutTprShadow);
        require(
            address.valid(table, 8) && address.valid(last_entry, 8),
            Violation::PidPointerTableAddress,
        );
    }
    found
}

fn reserved_bits(vmcs: &VmcsRegion, require: &mut impl FnMut(bool, Violation)) {
    let capability = vmcs.capability();
    let word = |encoding| vmcs.get(encoding) as u32;
    let active = word(field::PRIMARY);
    require(capability.pin().permits(word(field::PIN_BASED)), Violation::PinBasedReserved);
    require(capability.primary().permits(active), Violation::PrimaryReserved);
    require(
        active & primary::SECONDARY == 0 || capability.secondary().permits(word(field::SECONDARY)),
        Violation::SecondaryReserved,
    );
    require(
        active & primary::TERTIARY == 0 || vmcs.get(field::TERTIARY) & !capability.tertiary() == 0,
        Violation::TertiaryReserved,
    );
    require(
        capability.exit().permits(word(field::VM_EXIT_CONTROLS)),
        Violation::ExitControlsReserved,
    );
}

fn tpr_shadow(
    controls: &Controls,
    address: Addresses,
    memory: &Arc<Memory<'_>>,
    require: &mut impl FnMut(bool, Violation),
) {
    if !controls.tpr_shadow {
        require(!controls.virtualize_x2apic, Violation::X2ApicWithoutTprShadow);
        require(
            !controls.apic_register_virtualization,
            Violation::RegisterVirtualizationWithoutTprShadow,
        );
        require(!controls.virtual_interrupt_delivery, Violation::DeliveryWithoutTprShadow);
        return;
    }
    let page_found = address.valid(controls.virtual_apic_address, 4096);
    require(page_found, Violation::VirtualApicAddress);
    if !controls.virtual_interrupt_delivery {
        require(controls.tpr_threshold <= 0xf, Violation::TprThresholdReserved);
        if page_found && !controls.virtualize_apic_accesses {
            let vtpr = Page::new(memory.clone(), controls.virtual_apic_address).vtpr();
            require(
                controls.tpr_threshold & 0xf <= u32::from(vtpr >> 4),
                Violation::TprThresholdAboveVtpr,
            );
        }
    }
}

fn other_controls(
    controls: &Controls,
    address: Addresses,
    require: &mut impl FnMut(bool, Violation),
) {
    require(
        !controls.msr_bitmaps || address.valid(controls.msr_bitmap_address, 4096),
        Violation::MsrBitmapAddress,
    );
    if controls.virtualize_apic_accesses {
        require(address.valid(controls.apic_access_address, 4096), Violation::ApicAccessAddress);
        require(!controls.virtualize_x2apic, Violation::X2ApicWithApicAccesses);
    }
    if controls.virtual_interrupt_delivery {
        require(
            controls.external_interrupt_exiting,
            Violation::DeliveryWithoutExternalInterruptExiting,
        );
    }
    if controls.posted_interrupts {
        require(controls.virtual_interrupt_delivery, Violation::PostedWithoutDelivery);
        require(controls.acknowledge_interrupt_on_exit, Violation::PostedWithoutAcknowledge);
        require(controls.notification_vector <= 0xff, Violation::NotificationVector);
        require(address.valid(controls.descriptor_address, 64), Violation::DescriptorAddress);
    }
}

/// Judges addresses in the VMCS.
#[derive(Clone, Copy)]
struct Addresses(Capability);

impl Addresses {
    fn valid(self, address: u64, alignment: u64) -> bool {
        address.is_multiple_of(alignment) && address >> self.0.vmcs_address_width() == 0
    }
}
