//! The virtual-machine control structure, field by field.

use core::error::Error;
use core::fmt;

/// Access to the fields of one vCPU's VMCS.
///
/// On hardware this is the VMCS that is current on the calling CPU. A fake may keep the fields in
/// memory, a nested hypervisor in its shadow.
pub trait Vmcs {
    /// The value of `field`, zero-extended to 64 bits (VMREAD).
    ///
    /// # Errors
    /// [`VmcsError::NoCurrentVmcs`], or [`VmcsError::Unsupported`] if this processor's VMCS has no
    /// such field.
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError>;

    /// Sets `field` to the low bits of `value` that it has room for (VMWRITE).
    ///
    /// The processor acts on the new value at the next VM entry, never earlier. After an error the
    /// field holds what it held before.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`VmcsError::ReadOnly`].
    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError>;
}

/// The encoding of a VMCS field: what VMREAD and VMWRITE take in their register operand
/// (SDM vol. 3, appendix B).
///
/// ```
/// use vlapic_hal::{FieldKind, FieldWidth, VmcsField};
///
/// const TPR_THRESHOLD: VmcsField = VmcsField::new(0x401c);
/// assert_eq!(TPR_THRESHOLD.width(), FieldWidth::Bits32);
/// assert_eq!(TPR_THRESHOLD.kind(), FieldKind::Control);
/// assert!(!TPR_THRESHOLD.is_read_only());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VmcsField(u32);

impl VmcsField {
    /// VM-instruction error: the number of the last VMX instruction's failure, 32 bits, read-only.
    pub const VM_INSTRUCTION_ERROR: Self = Self::new(0x4400);

    /// The field with this encoding. Any number is taken; whether a field has it, the processor
    /// knows.
    pub const fn new(encoding: u32) -> Self {
        Self(encoding)
    }

    /// The encoding.
    pub const fn encoding(self) -> u32 {
        self.0
    }

    /// How wide the field is (bits 14:13).
    ///
    /// The high half of a 64-bit field is itself a 64-bit field here: see
    /// [`is_high_half`](Self::is_high_half) and [`mask`](Self::mask).
    pub const fn width(self) -> FieldWidth {
        match (self.0 >> 13) & 0b11 {
            0 => FieldWidth::Bits16,
            1 => FieldWidth::Bits64,
            2 => FieldWidth::Bits32,
            _ => FieldWidth::Natural,
        }
    }

    /// What the field is for (bits 11:10).
    pub const fn kind(self) -> FieldKind {
        match (self.0 >> 10) & 0b11 {
            0 => FieldKind::Control,
            1 => FieldKind::ExitInformation,
            2 => FieldKind::GuestState,
            _ => FieldKind::HostState,
        }
    }

    /// The field's number among those of its width and kind (bits 9:1).
    pub const fn index(self) -> u16 {
        ((self.0 >> 1) & 0x1ff) as u16
    }

    /// Whether this names bits 63:32 of a 64-bit field (bit 0: access type "high").
    pub const fn is_high_half(self) -> bool {
        self.0 & 1 != 0
    }

    /// The field of which this is the whole or the high half.
    pub const fn whole(self) -> Self {
        Self(self.0 & !1)
    }

    /// Whether the field only reports: VMWRITE to it fails unless IA32_VMX_MISC bit 29 is set.
    pub const fn is_read_only(self) -> bool {
        matches!(self.kind(), FieldKind::ExitInformation)
    }

    /// The bits that an access by this encoding reads or writes, as a mask from bit 0.
    pub const fn mask(self) -> u64 {
        match self.width() {
            FieldWidth::Bits16 => 0xffff,
            FieldWidth::Bits32 => 0xffff_ffff,
            FieldWidth::Bits64 if self.is_high_half() => 0xffff_ffff,
            FieldWidth::Bits64 | FieldWidth::Natural => u64::MAX,
        }
    }
}

impl fmt::Debug for VmcsField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmcsField({:#06x})", self.0)
    }
}

impl fmt::Display for VmcsField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// The width of a VMCS field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldWidth {
    /// 16 bits.
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64 bits, also on processors without Intel 64.
    Bits64,
    /// 64 bits on processors with Intel 64, else 32. This crate takes it for 64.
    Natural,
}

/// What a VMCS field is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// Controls VM entry, VM exit or execution in the guest.
    Control,
    /// Reports why the last VM exit happened, or why an instruction failed. Read-only.
    ExitInformation,
    /// Guest state: loaded on VM entry, saved on VM exit.
    GuestState,
    /// Host state: loaded on VM exit.
    HostState,
}

/// Why a VMCS field was not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VmcsError {
    /// No VMCS is current on this CPU (VMfailInvalid).
    NoCurrentVmcs,
    /// This processor's VMCS has no such field (VM-instruction error 12).
    Unsupported(VmcsField),
    /// The field cannot be written (VM-instruction error 13).
    ReadOnly(VmcsField),
    /// The implementation has no room for the field, whatever a processor has.
    Unavailable(VmcsField),
    /// VMfailValid with another VM-instruction error (SDM vol. 3, "VM Instruction Error Numbers").
    Instruction(u32),
}

impl fmt::Display for VmcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCurrentVmcs => f.write_str("no VMCS is current on this CPU"),
            Self::Unsupported(field) => write!(f, "VMCS field {field} is not supported"),
            Self::ReadOnly(field) => write!(f, "VMCS field {field} is read-only"),
            Self::Unavailable(field) => write!(f, "VMCS field {field} is not available here"),
            Self::Instruction(number) => write!(f, "VM-instruction error {number}"),
        }
    }
}

impl Error for VmcsError {}

impl<T: Vmcs + ?Sized> Vmcs for &mut T {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        (**self).read(field)
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        (**self).write(field, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encoding, width, kind, index, high half.
    const FIELDS: &[(u32, FieldWidth, FieldKind, u16, bool)] = &[
        // Posted-interrupt notification vector, guest interrupt status.
        (0x0002, FieldWidth::Bits16, FieldKind::Control, 1, false),
        (0x0810, FieldWidth::Bits16, FieldKind::GuestState, 8, false),
        // Virtual-APIC address and EOI-exit bitmap 3, whole and high.
        (0x2012, FieldWidth::Bits64, FieldKind::Control, 9, false),
        (0x2013, FieldWidth::Bits64, FieldKind::Control, 9, true),
        (0x2022, FieldWidth::Bits64, FieldKind::Control, 17, false),
        (0x2023, FieldWidth::Bits64, FieldKind::Control, 17, true),
        // Guest-physical address of the exit, host IA32_PAT.
        (0x2400, FieldWidth::Bits64, FieldKind::ExitInformation, 0, false),
        (0x2c00, FieldWidth::Bits64, FieldKind::HostState, 0, false),
        // TPR threshold, exit reason, guest activity state.
        (0x401c, FieldWidth::Bits32, FieldKind::Control, 14, false),
        (0x4402, FieldWidth::Bits32, FieldKind::ExitInformation, 1, false),
        (0x4826, FieldWidth::Bits32, FieldKind::GuestState, 19, false),
        // Exit qualification, guest RIP, host RIP.
        (0x6400, FieldWidth::Natural, FieldKind::ExitInformation, 0, false),
        (0x681e, FieldWidth::Natural, FieldKind::GuestState, 15, false),
        (0x6c16, FieldWidth::Natural, FieldKind::HostState, 11, false),
    ];

    #[test]
    fn an_encoding_says_width_kind_and_index() {
        for &(encoding, width, kind, index, high) in FIELDS {
            let field = VmcsField::new(encoding);
            assert_eq!(field.encoding(), encoding);
            assert_eq!(field.width(), width, "{field}");
            assert_eq!(field.kind(), kind, "{field}");
            assert_eq!(field.index(), index, "{field}");
            assert_eq!(field.is_high_half(), high, "{field}");
            assert_eq!(field.is_read_only(), kind == FieldKind::ExitInformation);
        }
    }

    #[test]
    fn a_high_half_is_32_bits_of_its_whole() {
        let high = VmcsField::new(0x2013);
        assert_eq!(high.whole(), VmcsField::new(0x2012));
        assert_eq!(high.mask(), 0xffff_ffff);
        assert_eq!(high.whole().mask(), u64::MAX);
        assert_eq!(high.whole().whole(), high.whole());
    }

    #[test]
    fn masks_follow_widths() {
        assert_eq!(VmcsField::new(0x0810).mask(), 0xffff);
        assert_eq!(VmcsField::new(0x4002).mask(), 0xffff_ffff);
        assert_eq!(VmcsField::new(0x6400).mask(), u64::MAX);
    }
}
