//! The VMCS fields that interrupt virtualization uses (SDM Vol. 3D appendix B).
//!
//! A 64-bit field is named by its even encoding: VMREAD and VMWRITE of that reach all 64 bits in
//! 64-bit mode.

use vlapic_hal::VmcsField;

/// Vector of the physical interrupt that makes the processor look at the posted-interrupt
/// descriptor. 16 bits, of which 15:8 must be 0. There if posted interrupts are supported.
pub const POSTED_INTERRUPT_NOTIFICATION_VECTOR: VmcsField = VmcsField::new(0x0002);

/// Index of the last entry of the PID-pointer table. 16 bits. There if IPI virtualization is
/// supported.
pub const LAST_PID_POINTER_INDEX: VmcsField = VmcsField::new(0x0008);

/// RVI in bits 7:0, SVI in bits 15:8. 16 bits, guest state. There if virtual-interrupt delivery is
/// supported.
pub const GUEST_INTERRUPT_STATUS: VmcsField = VmcsField::new(0x0810);

/// Physical address of the MSR bitmap, 4 KiB aligned. There if "use MSR bitmaps" is supported.
pub const MSR_BITMAP: VmcsField = VmcsField::new(0x2004);

/// Physical address of the virtual-APIC page, 4 KiB aligned. There if "use TPR shadow" is
/// supported.
pub const VIRTUAL_APIC: VmcsField = VmcsField::new(0x2012);

/// Physical address of the APIC-access page, 4 KiB aligned. There if "virtualize APIC accesses" is
/// supported.
pub const APIC_ACCESS: VmcsField = VmcsField::new(0x2014);

/// Physical address of the posted-interrupt descriptor, 64-byte aligned. There if posted interrupts
/// are supported.
pub const POSTED_INTERRUPT_DESCRIPTOR: VmcsField = VmcsField::new(0x2016);

/// The EOI-exit bitmap: vector `v` is bit `v % 64` of field `v / 64`. There if virtual-interrupt
/// delivery is supported.
pub const EOI_EXIT_BITMAP: [VmcsField; 4] = [
    VmcsField::new(0x201c),
    VmcsField::new(0x201e),
    VmcsField::new(0x2020),
    VmcsField::new(0x2022),
];

/// Tertiary processor-based controls, 64 bits. There if "activate tertiary controls" is supported.
pub const TERTIARY_CONTROLS: VmcsField = VmcsField::new(0x2034);

/// Physical address of the PID-pointer table. There if IPI virtualization is supported.
pub const PID_POINTER_TABLE: VmcsField = VmcsField::new(0x2042);

/// Pin-based controls.
pub const PIN_CONTROLS: VmcsField = VmcsField::new(0x4000);

/// Primary processor-based controls.
pub const PRIMARY_CONTROLS: VmcsField = VmcsField::new(0x4002);

/// VM-exit controls.
pub const EXIT_CONTROLS: VmcsField = VmcsField::new(0x400c);

/// VM-entry interruption-information field: the event that the next VM entry injects.
pub const ENTRY_INTERRUPTION_INFORMATION: VmcsField = VmcsField::new(0x4016);

/// Error code of the event that the next VM entry injects.
pub const ENTRY_EXCEPTION_ERROR_CODE: VmcsField = VmcsField::new(0x4018);

/// Instruction length of the software event that the next VM entry injects, in bytes.
pub const ENTRY_INSTRUCTION_LENGTH: VmcsField = VmcsField::new(0x401a);

/// TPR threshold: 32 bits, of which 31:4 must be 0. There if "use TPR shadow" is supported.
pub const TPR_THRESHOLD: VmcsField = VmcsField::new(0x401c);

/// Secondary processor-based controls. There if "activate secondary controls" is supported.
pub const SECONDARY_CONTROLS: VmcsField = VmcsField::new(0x401e);

/// Exit reason, read-only: the basic reason in bits 15:0.
pub const EXIT_REASON: VmcsField = VmcsField::new(0x4402);

/// VM-exit interruption information, read-only: after an external-interrupt exit with
/// "acknowledge interrupt on exit", the vector.
pub const EXIT_INTERRUPTION_INFORMATION: VmcsField = VmcsField::new(0x4404);

/// IDT-vectoring information, read-only: the event whose delivery the VM exit interrupted.
pub const IDT_VECTORING_INFORMATION: VmcsField = VmcsField::new(0x4408);

/// Error code of the event in [`IDT_VECTORING_INFORMATION`], read-only.
pub const IDT_VECTORING_ERROR_CODE: VmcsField = VmcsField::new(0x440a);

/// Length in bytes of the instruction that caused the VM exit, read-only. Undefined after the
/// trap-like exits 43, 45 and 56.
pub const EXIT_INSTRUCTION_LENGTH: VmcsField = VmcsField::new(0x440c);

/// Guest interruptibility state: bit 0 blocking by STI, bit 1 by MOV SS.
pub const GUEST_INTERRUPTIBILITY_STATE: VmcsField = VmcsField::new(0x4824);

/// Guest activity state: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI.
pub const GUEST_ACTIVITY_STATE: VmcsField = VmcsField::new(0x4826);

/// Exit qualification, read-only, natural width.
pub const EXIT_QUALIFICATION: VmcsField = VmcsField::new(0x6400);

/// Guest RFLAGS, natural width.
pub const GUEST_RFLAGS: VmcsField = VmcsField::new(0x6820);

#[cfg(test)]
mod tests {
    use vlapic_hal::{FieldKind, FieldWidth};

    use super::*;

    /// Width and kind follow from the encoding, so a mistyped digit shows here.
    #[test]
    fn widths_and_kinds() {
        use FieldKind::{Control, ExitInformation, GuestState};
        use FieldWidth::{Bits16, Bits32, Bits64, Natural};
        let fields = [
            (POSTED_INTERRUPT_NOTIFICATION_VECTOR, Bits16, Control, 1),
            (LAST_PID_POINTER_INDEX, Bits16, Control, 4),
            (GUEST_INTERRUPT_STATUS, Bits16, GuestState, 8),
            (MSR_BITMAP, Bits64, Control, 2),
            (VIRTUAL_APIC, Bits64, Control, 9),
            (APIC_ACCESS, Bits64, Control, 10),
            (POSTED_INTERRUPT_DESCRIPTOR, Bits64, Control, 11),
            (EOI_EXIT_BITMAP[0], Bits64, Control, 14),
            (EOI_EXIT_BITMAP[1], Bits64, Control, 15),
            (EOI_EXIT_BITMAP[2], Bits64, Control, 16),
            (EOI_EXIT_BITMAP[3], Bits64, Control, 17),
            (TERTIARY_CONTROLS, Bits64, Control, 26),
            (PID_POINTER_TABLE, Bits64, Control, 33),
            (PIN_CONTROLS, Bits32, Control, 0),
            (PRIMARY_CONTROLS, Bits32, Control, 1),
            (EXIT_CONTROLS, Bits32, Control, 6),
            (ENTRY_INTERRUPTION_INFORMATION, Bits32, Control, 11),
            (ENTRY_EXCEPTION_ERROR_CODE, Bits32, Control, 12),
            (ENTRY_INSTRUCTION_LENGTH, Bits32, Control, 13),
            (TPR_THRESHOLD, Bits32, Control, 14),
            (SECONDARY_CONTROLS, Bits32, Control, 15),
            (EXIT_REASON, Bits32, ExitInformation, 1),
            (EXIT_INTERRUPTION_INFORMATION, Bits32, ExitInformation, 2),
            (IDT_VECTORING_INFORMATION, Bits32, ExitInformation, 4),
            (IDT_VECTORING_ERROR_CODE, Bits32, ExitInformation, 5),
            (EXIT_INSTRUCTION_LENGTH, Bits32, ExitInformation, 6),
            (GUEST_INTERRUPTIBILITY_STATE, Bits32, GuestState, 18),
            (GUEST_ACTIVITY_STATE, Bits32, GuestState, 19),
            (EXIT_QUALIFICATION, Natural, ExitInformation, 0),
            (GUEST_RFLAGS, Natural, GuestState, 16),
        ];
        for (field, width, kind, index) in fields {
            let found = (field.width(), field.kind(), field.index(), field.is_high_half());
            assert_eq!(found, (width, kind, index, false), "{field}");
        }
    }
}
