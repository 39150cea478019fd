//! The VM-execution controls that concern the APIC, decoded once at VM entry.

use super::field;
use super::vmcs::VmcsRegion;

/// Bits of the pin-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod pin {
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub const NMI_EXITING: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Bits of the primary processor-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod primary {
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    pub const HLT_EXITING: u32 = 1 << 7;
    pub const CR3_EXITING: u32 = 1 << 15 | 1 << 16;
    pub const TERTIARY: u32 = 1 << 17;
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const SECONDARY: u32 = 1 << 31;
    pub(in crate::model) const OPTIONAL: u32 = TERTIARY | TPR_SHADOW | MSR_BITMAPS | SECONDARY;
}

/// Bits of the secondary processor-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod secondary {
    pub const VIRTUALIZE_APIC_ACCESSES: u32 = 1 << 0;
    pub const EPT: u32 = 1 << 1;
    pub const VIRTUALIZE_X2APIC: u32 = 1 << 4;
    pub const APIC_REGISTER_VIRTUALIZATION: u32 = 1 << 8;
    pub const VIRTUAL_INTERRUPT_DELIVERY: u32 = 1 << 9;
    /// Controls the model allows and does not act on: VPID, unrestricted guest, RDTSCP, INVPCID and the like.
    pub const OTHERS: u32 = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 20;
}

/// Bits of the tertiary processor-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod tertiary {
    pub const IPI_VIRTUALIZATION: u64 = 1 << 4;
}

/// Bits of the VM-exit controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod exit {
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
}

/// What the controls say, with secondary and tertiary ones counted as 0 unless they are activated.
///
/// The processor reads the VMCS at VM entry; what software writes to it later has no effect before the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name is that of a control or field of the manual")]
pub struct Controls {
    pub external_interrupt_exiting: bool,
    pub nmi_exiting: bool,
    pub preemption_timer: bool,
    pub posted_interrupts: bool,
    pub interrupt_window_exiting: bool,
    pub hlt_exiting: bool,
    pub cr8_load_exiting: bool,
    pub cr8_store_exiting: bool,
    pub tpr_shadow: bool,
    pub msr_bitmaps: bool,
    pub virtualize_apic_accesses: bool,
    pub virtualize_x2apic: bool,
    pub apic_register_virtualization: bool,
    pub virtual_interrupt_delivery: bool,
    pub ipi_virtualization: bool,
    pub acknowledge_interrupt_on_exit: bool,
    pub save_preemption_timer: bool,
    pub tpr_threshold: u32,
    pub eoi_exit: [u64; 4],
    pub notification_vector: u16,
    pub descriptor_address: u64,
    pub virtual_apic_address: u64,
    pub apic_access_address: u64,
    pub msr_bitmap_address: u64,
    pub pid_pointer_table_address: u64,
    pub last_pid_pointer_index: u16,
}

impl Controls {
    /// Decodes a VMCS.
    pub fn of(vmcs: &VmcsRegion) -> Self {
        let word = |encoding| vmcs.get(encoding) as u32;
        let pin_based = word(field::PIN_BASED);
        let primary = word(field::PRIMARY);
        let secondary = if primary & primary::SECONDARY != 0 { word(field::SECONDARY) } else { 0 };
        let tertiary = if primary & primary::TERTIARY != 0 { vmcs.get(field::TERTIARY) } else { 0 };
        let exit = word(field::VM_EXIT_CONTROLS);
        Controls {
            external_interrupt_exiting: pin_based & pin::EXTERNAL_INTERRUPT_EXITING != 0,
            nmi_exiting: pin_based & pin::NMI_EXITING != 0,
            preemption_timer: pin_based & pin::PREEMPTION_TIMER != 0,
            posted_interrupts: pin_based & pin::POSTED_INTERRUPTS != 0,
            interrupt_window_exiting: primary & primary::INTERRUPT_WINDOW_EXITING != 0,
            hlt_exiting: primary & primary::HLT_EXITING != 0,
            cr8_load_exiting: primary & primary::CR8_LOAD_EXITING != 0,
            cr8_store_exiting: primary & primary::CR8_STORE_EXITING != 0,
            tpr_shadow: primary & primary::TPR_SHADOW != 0,
            msr_bitmaps: primary & primary::MSR_BITMAPS != 0,
            virtualize_apic_accesses: secondary & secondary::VIRTUALIZE_APIC_ACCESSES != 0,
            virtualize_x2apic: secondary & secondary::VIRTUALIZE_X2APIC != 0,
            apic_register_virtualization: secondary & secondary::APIC_REGISTER_VIRTUALIZATION != 0,
            virtual_interrupt_delivery: secondary & secondary::VIRTUAL_INTERRUPT_DELIVERY != 0,
            ipi_virtualization: tertiary & tertiary::IPI_VIRTUALIZATION != 0,
            acknowledge_interrupt_on_exit: exit & exit::ACKNOWLEDGE_INTERRUPT != 0,
            save_preemption_timer: exit & exit::SAVE_PREEMPTION_TIMER != 0,
            tpr_threshold: word(field::TPR_THRESHOLD),
            eoi_exit: field::EOI_EXIT_BITMAP.map(|encoding| vmcs.get(encoding)),
            notification_vector: vmcs.get(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR) as u16,
            descriptor_address: vmcs.get(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS),
            virtual_apic_address: vmcs.get(field::VIRTUAL_APIC_ADDRESS),
            apic_access_address: vmcs.get(field::APIC_ACCESS_ADDRESS),
            msr_bitmap_address: vmcs.get(field::MSR_BITMAP_ADDRESS),
            pid_pointer_table_address: vmcs.get(field::PID_POINTER_TABLE_ADDRESS),
            last_pid_pointer_index: vmcs.get(field::LAST_PID_POINTER_INDEX) as u16,
        }
    }

    /// Whether an EOI of `vector` causes a VM exit.
    pub fn exits_at_eoi(&self, vector: u8) -> bool {
        self.eoi_exit[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
    }
}
