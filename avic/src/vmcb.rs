//! The fields of a VMCB that are about interrupts.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use static_assertions::const_assert_eq;

/// A VMCB as its 512 words of 64 bits, little-endian, at byte offsets that are multiples of 8.
///
/// Implement it for the structure that the hypervisor has, or use [`VmcbPage`]. Only one CPU
/// touches a VMCB at a time, and none while its guest runs.
pub trait Vmcb {
    /// The word at byte offset `offset`.
    fn load(&self, offset: u16) -> u64;

    /// Stores the word at byte offset `offset`.
    fn store(&mut self, offset: u16, value: u64);
}

impl<V: Vmcb + ?Sized> Vmcb for &mut V {
    fn load(&self, offset: u16) -> u64 {
        (**self).load(offset)
    }

    fn store(&mut self, offset: u16, value: u64) {
        (**self).store(offset, value);
    }
}

/// A VMCB in memory, 4 KiB aligned, for hypervisors that have no type of their own for it.
#[repr(C, align(4096))]
pub struct VmcbPage {
    words: [AtomicU64; 512],
}

const_assert_eq!(size_of::<VmcbPage>(), 4096);
const_assert_eq!(align_of::<VmcbPage>(), 4096);

impl VmcbPage {
    /// All zeroes.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [const { AtomicU64::new(0) }; 512] }
    }

    /// All words, for silicon models.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 512] {
        &self.words
    }
}

impl Default for VmcbPage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for VmcbPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmcbPage").finish_non_exhaustive()
    }
}

/// Through a shared reference: the processor changes the page as well.
impl Vmcb for &VmcbPage {
    #[inline]
    fn load(&self, offset: u16) -> u64 {
        self.words[usize::from(offset >> 3) & 511].load(Ordering::Relaxed)
    }

    #[inline]
    fn store(&mut self, offset: u16, value: u64) {
        self.words[usize::from(offset >> 3) & 511].store(value, Ordering::Relaxed);
    }
}

impl Vmcb for VmcbPage {
    #[inline]
    fn load(&self, offset: u16) -> u64 {
        (&self).load(offset)
    }

    #[inline]
    fn store(&mut self, offset: u16, value: u64) {
        (&*self).store(offset, value);
    }
}

/// A word of the VMCB that this crate reads or writes (APM Vol. 2 Table B-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Field {
    /// 000: intercepts of CR and DR accesses. Bit 24: writes of CR8.
    CrIntercepts = 0x000,
    /// 008: intercepts of exceptions; in bits 63:32 (00C) the first instruction intercepts.
    Intercepts = 0x008,
    /// 048: address of the MSR permission map.
    MsrPermissionMap = 0x048,
    /// 058: ASID; in bits 39:32 TLB_CONTROL.
    TlbControl = 0x058,
    /// 060: [`InterruptControl`].
    InterruptControl = 0x060,
    /// 068: interrupt shadow.
    InterruptShadow = 0x068,
    /// 070: exit code.
    ExitCode = 0x070,
    /// 078: EXITINFO1.
    ExitInfo1 = 0x078,
    /// 080: EXITINFO2.
    ExitInfo2 = 0x080,
    /// 090: nested paging in bit 0.
    NestedPaging = 0x090,
    /// 098: guest-physical address of the register window, V_APIC_BAR.
    ApicBar = 0x098,
    /// 0A8: event injection, EVENTINJ.
    EventInjection = 0x0A8,
    /// 0C0: clean bits.
    CleanBits = 0x0C0,
    /// 0E0: address of the backing page.
    BackingPage = 0x0E0,
    /// 0F0: address of the logical APIC ID table.
    LogicalTable = 0x0F0,
    /// 0F8: address of the physical APIC ID table; in bits 11:0 AVIC_PHYSICAL_MAX_INDEX.
    PhysicalTable = 0x0F8,
}

impl Field {
    /// Byte offset in the VMCB.
    #[must_use]
    pub const fn offset(self) -> u16 {
        self as u16
    }

    /// The clean bits that say the processor need not load this field anew (APM Vol. 2 15.15.3).
    ///
    /// Whether bit 3 (TPR) or bit 11 (AVIC) covers the two enable bits in 060 the manual does not
    /// say, so word 060 has both.
    #[must_use]
    pub const fn clean_bits(self) -> u32 {
        match self {
            Self::CrIntercepts | Self::Intercepts => 1 << 0,
            Self::MsrPermissionMap => 1 << 1,
            Self::NestedPaging => 1 << 4,
            Self::InterruptControl => 1 << 3 | 1 << 11,
            Self::ApicBar | Self::BackingPage | Self::LogicalTable | Self::PhysicalTable => 1 << 11,
            Self::TlbControl
            | Self::InterruptShadow
            | Self::ExitCode
            | Self::ExitInfo1
            | Self::ExitInfo2
            | Self::EventInjection
            | Self::CleanBits => 0,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VMCB field {:03X}", self.offset())
    }
}

/// Fields by name.
pub(crate) trait Fields: Vmcb {
    fn read(&self, field: Field) -> u64 {
        self.load(field.offset())
    }

    /// Writes a field if it changes, and says so to the processor.
    fn write(&mut self, field: Field, value: u64) {
        if self.read(field) != value {
            self.store(field.offset(), value);
            self.soil(field);
        }
    }

    /// Clears the clean bits of `field`.
    fn soil(&mut self, field: Field) {
        let clean = self.read(Field::CleanBits);
        let left = clean & !u64::from(field.clean_bits());
        if left != clean {
            self.store(Field::CleanBits.offset(), left);
        }
    }

    fn interrupt_control(&self) -> InterruptControl {
        InterruptControl::from_bits(self.read(Field::InterruptControl))
    }
}

impl<V: Vmcb + ?Sized> Fields for V {}

/// Word 060 of the VMCB: virtual interrupt control.
///
/// | bits | field |
/// |---|---|
/// | 7:0 | V_TPR, of which 3:0 are used |
/// | 8 | V_IRQ * |
/// | 9 | V_GIF |
/// | 11, 12 | V_NMI pending, V_NMI mask |
/// | 19:16 | V_INTR_PRIO * |
/// | 20 | V_IGN_TPR * |
/// | 24 | V_INTR_MASKING |
/// | 25 | VGIF enable |
/// | 26 | V_NMI enable |
/// | 30, 31 | x2AVIC enable, AVIC enable |
/// | 39:32 | V_INTR_VECTOR * |
///
/// AVIC ignores those with a star. The processor writes the word back at each exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterruptControl(u64);

impl InterruptControl {
    /// V_IRQ.
    pub const V_IRQ: u64 = 1 << 8;
    /// V_NMI pending.
    pub const V_NMI: u64 = 1 << 11;
    /// V_NMI mask: the guest handles an NMI.
    pub const V_NMI_MASK: u64 = 1 << 12;
    /// V_INTR_PRIO.
    pub const V_INTR_PRIO: u64 = 0xF << 16;
    /// V_IGN_TPR.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// V_INTR_MASKING.
    pub const V_INTR_MASKING: u64 = 1 << 24;
    /// V_NMI enable.
    pub const V_NMI_ENABLE: u64 = 1 << 26;
    /// x2AVIC enable.
    pub const X2AVIC_ENABLE: u64 = 1 << 30;
    /// AVIC enable.
    pub const AVIC_ENABLE: u64 = 1 << 31;
    /// Bits that must be zero.
    pub const RESERVED: u64 = 0xFFFF_FF00_38E0_E4F0;

    /// The word `bits`, unchecked.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `bits` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The word with `bits` set or clear.
    #[inline]
    #[must_use]
    pub const fn set(self, bits: u64, value: bool) -> Self {
        Self(if value { self.0 | bits } else { self.0 & !bits })
    }

    /// V_TPR: bits 7:4 of the guest's TPR, which is what CR8 shows.
    #[inline]
    #[must_use]
    pub const fn v_tpr(self) -> u8 {
        self.0 as u8 & 0xF
    }

    /// The word with V_TPR `value & F`.
    #[inline]
    #[must_use]
    pub const fn with_v_tpr(self, value: u8) -> Self {
        Self(self.0 & !0xFF | (value & 0xF) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_soils_its_group_and_nothing_else() {
        for (field, bits) in [
            (Field::CrIntercepts, 0x001),
            (Field::Intercepts, 0x001),
            (Field::InterruptControl, 0x808),
            (Field::ApicBar, 0x800),
            (Field::BackingPage, 0x800),
            (Field::LogicalTable, 0x800),
            (Field::PhysicalTable, 0x800),
            (Field::EventInjection, 0),
            (Field::TlbControl, 0),
        ] {
            let mut vmcb = VmcbPage::new();
            vmcb.store(0x0C0, 0xFFFF);
            vmcb.write(field, 0);
            assert_eq!(vmcb.load(0x0C0), 0xFFFF, "{field}: no change");
            vmcb.write(field, 0x1000);
            assert_eq!(vmcb.load(0x0C0), 0xFFFF & !bits, "{field}");
            assert_eq!(vmcb.load(field.offset()), 0x1000);
        }
    }

    #[test]
    fn named_bits_and_reserved_bits_are_all_bits() {
        let named = InterruptControl::V_IRQ
            | InterruptControl::V_NMI
            | InterruptControl::V_NMI_MASK
            | InterruptControl::V_INTR_PRIO
            | InterruptControl::V_IGN_TPR
            | InterruptControl::V_INTR_MASKING
            | InterruptControl::V_NMI_ENABLE
            | InterruptControl::X2AVIC_ENABLE
            | InterruptControl::AVIC_ENABLE;
        // V_TPR, V_GIF, VGIF enable and V_INTR_VECTOR have no name here.
        let others = 0xF | 1 << 9 | 1 << 25 | 0xFF << 32;
        assert_eq!(named & others, 0);
        assert_eq!(named | others, !InterruptControl::RESERVED);
    }

    #[test]
    fn v_tpr_has_four_bits() {
        let word = InterruptControl::from_bits(0x8100_00F7).with_v_tpr(0x1D);
        assert_eq!((word.v_tpr(), word.bits()), (0xD, 0x8100_000D));
    }
}
