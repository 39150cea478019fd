//! Encodings of the VMCS fields that the model knows (SDM appendix B).

#![expect(missing_docs, reason = "the names are the manual's, shortened")]

pub const POSTED_INTERRUPT_NOTIFICATION_VECTOR: u32 = 0x0002;
pub const LAST_PID_POINTER_INDEX: u32 = 0x0008;
pub const GUEST_INTERRUPT_STATUS: u32 = 0x0810;
pub const MSR_BITMAP_ADDRESS: u32 = 0x2004;
pub const VIRTUAL_APIC_ADDRESS: u32 = 0x2012;
pub const APIC_ACCESS_ADDRESS: u32 = 0x2014;
pub const POSTED_INTERRUPT_DESCRIPTOR_ADDRESS: u32 = 0x2016;
pub const EPT_POINTER: u32 = 0x201a;
pub const EOI_EXIT_BITMAP: [u32; 4] = [0x201c, 0x201e, 0x2020, 0x2022];
pub const TERTIARY: u32 = 0x2034;
pub const PID_POINTER_TABLE_ADDRESS: u32 = 0x2042;
pub const GUEST_PHYSICAL_ADDRESS: u32 = 0x2400;
pub const PIN_BASED: u32 = 0x4000;
pub const PRIMARY: u32 = 0x4002;
pub const EXCEPTION_BITMAP: u32 = 0x4004;
pub const VM_EXIT_CONTROLS: u32 = 0x400c;
pub const VM_ENTRY_CONTROLS: u32 = 0x4012;
pub const ENTRY_INTERRUPTION_INFO: u32 = 0x4016;
pub const ENTRY_ERROR_CODE: u32 = 0x4018;
pub const ENTRY_INSTRUCTION_LENGTH: u32 = 0x401a;
pub const TPR_THRESHOLD: u32 = 0x401c;
pub const SECONDARY: u32 = 0x401e;
pub const INSTRUCTION_ERROR: u32 = 0x4400;
pub const EXIT_REASON: u32 = 0x4402;
pub const EXIT_INTERRUPTION_INFO: u32 = 0x4404;
pub const EXIT_INTERRUPTION_ERROR_CODE: u32 = 0x4406;
pub const IDT_VECTORING_INFO: u32 = 0x4408;
pub const IDT_VECTORING_ERROR_CODE: u32 = 0x440a;
pub const EXIT_INSTRUCTION_LENGTH: u32 = 0x440c;
pub const GUEST_INTERRUPTIBILITY: u32 = 0x4824;
pub const GUEST_ACTIVITY_STATE: u32 = 0x4826;
pub const PREEMPTION_TIMER: u32 = 0x482e;
pub const EXIT_QUALIFICATION: u32 = 0x6400;
pub const GUEST_RIP: u32 = 0x681e;
pub const GUEST_RFLAGS: u32 = 0x6820;

/// Which feature a field's existence depends on; `None` for fields that every processor has.
pub(super) fn needs(encoding: u32) -> Option<super::Feature> {
    use super::Feature;
    Some(match encoding {
        POSTED_INTERRUPT_NOTIFICATION_VECTOR | POSTED_INTERRUPT_DESCRIPTOR_ADDRESS => {
            Feature::PostedInterrupts
        }
        LAST_PID_POINTER_INDEX | PID_POINTER_TABLE_ADDRESS => Feature::IpiVirtualization,
        GUEST_INTERRUPT_STATUS | 0x201c | 0x201e | 0x2020 | 0x2022 => {
            Feature::VirtualInterruptDelivery
        }
        MSR_BITMAP_ADDRESS => Feature::MsrBitmaps,
        VIRTUAL_APIC_ADDRESS | TPR_THRESHOLD => Feature::TprShadow,
        APIC_ACCESS_ADDRESS => Feature::VirtualizeApicAccesses,
        TERTIARY => Feature::TertiaryControls,
        SECONDARY => Feature::SecondaryControls,
        EPT_POINTER | GUEST_PHYSICAL_ADDRESS => Feature::Ept,
        PREEMPTION_TIMER => Feature::PreemptionTimer,
        _ => return None,
    })
}

/// Every full-width encoding that the model stores.
pub(super) const ALL: &[u32] = &[
    POSTED_INTERRUPT_NOTIFICATION_VECTOR,
    LAST_PID_POINTER_INDEX,
    GUEST_INTERRUPT_STATUS,
    MSR_BITMAP_ADDRESS,
    VIRTUAL_APIC_ADDRESS,
    APIC_ACCESS_ADDRESS,
    POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
    EPT_POINTER,
    0x201c,
    0x201e,
    0x2020,
    0x2022,
    TERTIARY,
    PID_POINTER_TABLE_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    PIN_BASED,
    PRIMARY,
    EXCEPTION_BITMAP,
    VM_EXIT_CONTROLS,
    VM_ENTRY_CONTROLS,
    ENTRY_INTERRUPTION_INFO,
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LENGTH,
    TPR_THRESHOLD,
    SECONDARY,
    INSTRUCTION_ERROR,
    EXIT_REASON,
    EXIT_INTERRUPTION_INFO,
    EXIT_INTERRUPTION_ERROR_CODE,
    IDT_VECTORING_INFO,
    IDT_VECTORING_ERROR_CODE,
    EXIT_INSTRUCTION_LENGTH,
    GUEST_INTERRUPTIBILITY,
    GUEST_ACTIVITY_STATE,
    PREEMPTION_TIMER,
    EXIT_QUALIFICATION,
    GUEST_RIP,
    GUEST_RFLAGS,
];
