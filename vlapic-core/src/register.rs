//! The names of the registers and where they lie.

/// One of the eight 32-bit words of a 256-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bank(u8);

impl Bank {
    /// Word `index` (only bits 2:0 count): vectors `32 * index` to `32 * index + 31`.
    #[must_use]
    pub const fn new(index: u8) -> Self {
        Self(index & 7)
    }

    /// 0 to 7.
    #[must_use]
    pub const fn index(self) -> u8 {
        self.0
    }
}

/// An entry of the local vector table (SDM Vol. 3A 10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LvtEntry {
    /// Corrected machine-check interrupt, offset 2F0.
    Cmci,
    /// Timer, offset 320.
    Timer,
    /// Thermal sensor, offset 330.
    Thermal,
    /// Performance counter, offset 340.
    Performance,
    /// LINT0 pin, offset 350.
    Lint0,
    /// LINT1 pin, offset 360.
    Lint1,
    /// Internal error, offset 370.
    Error,
}

impl LvtEntry {
    /// Every entry, in the order of offsets.
    pub const ALL: [Self; 7] = [
        Self::Cmci,
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];
}

/// A register of the local APIC (SDM Vol. 3A Table 10-1; APM Vol. 2 Table 16-2).
///
/// The registers from [`ExtendedFeature`](Self::ExtendedFeature) on are AMD's extended space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// APIC ID, offset 020.
    Id,
    /// Version, offset 030.
    Version,
    /// Task priority, offset 080.
    Tpr,
    /// Arbitration priority, offset 090.
    Apr,
    /// Processor priority, offset 0A0.
    Ppr,
    /// End of interrupt, offset 0B0.
    Eoi,
    /// Remote read, offset 0C0.
    RemoteRead,
    /// Logical destination, offset 0D0.
    Ldr,
    /// Destination format, offset 0E0.
    Dfr,
    /// Spurious-interrupt vector, offset 0F0.
    Svr,
    /// In service, offsets 100 to 170.
    Isr(Bank),
    /// Trigger mode, offsets 180 to 1F0.
    Tmr(Bank),
    /// Interrupt request, offsets 200 to 270.
    Irr(Bank),
    /// Error status, offset 280.
    Esr,
    /// Local vector table, offsets 2F0 and 320 to 370.
    Lvt(LvtEntry),
    /// Interrupt command, low half, offset 300. In x2APIC mode MSR 830 is the whole register.
    IcrLow,
    /// Interrupt command, high half, offset 310.
    IcrHigh,
    /// Timer initial count, offset 380.
    InitialCount,
    /// Timer current count, offset 390.
    CurrentCount,
    /// Timer divide configuration, offset 3E0.
    DivideConfiguration,
    /// Self IPI, MSR 83F.
    SelfIpi,
    /// AMD: extended feature, offset 400.
    ExtendedFeature,
    /// AMD: extended control, offset 410.
    ExtendedControl,
    /// AMD: specific EOI, offset 420.
    SpecificEoi,
    /// AMD: interrupt enable, offsets 480 to 4F0.
    Ier(Bank),
    /// AMD: extended local vector table, offsets 500 to 530 (index 0 to 3).
    ExtendedLvt(u8),
}

impl Register {
    /// The register whose 16-byte slot begins at page offset `offset`; `None` where the manuals
    /// reserve the slot or `offset` is not a multiple of 16.
    #[must_use]
    pub const fn at(offset: u16) -> Option<Self> {
        if offset & 0xF != 0 {
            return None;
        }
        let bank = Bank::new((offset >> 4) as u8 & 7);
        Some(match offset {
            0x020 => Self::Id,
            0x030 => Self::Version,
            0x080 => Self::Tpr,
            0x090 => Self::Apr,
            0x0A0 => Self::Ppr,
            0x0B0 => Self::Eoi,
            0x0C0 => Self::RemoteRead,
            0x0D0 => Self::Ldr,
            0x0E0 => Self::Dfr,
            0x0F0 => Self::Svr,
            0x100..=0x170 => Self::Isr(bank),
            0x180..=0x1F0 => Self::Tmr(bank),
            0x200..=0x270 => Self::Irr(bank),
            0x280 => Self::Esr,
            0x2F0 => Self::Lvt(LvtEntry::Cmci),
            0x300 => Self::IcrLow,
            0x310 => Self::IcrHigh,
            0x320 => Self::Lvt(LvtEntry::Timer),
            0x330 => Self::Lvt(LvtEntry::Thermal),
            0x340 => Self::Lvt(LvtEntry::Performance),
            0x350 => Self::Lvt(LvtEntry::Lint0),
            0x360 => Self::Lvt(LvtEntry::Lint1),
            0x370 => Self::Lvt(LvtEntry::Error),
            0x380 => Self::InitialCount,
            0x390 => Self::CurrentCount,
            0x3E0 => Self::DivideConfiguration,
            0x3F0 => Self::SelfIpi,
            0x400 => Self::ExtendedFeature,
            0x410 => Self::ExtendedControl,
            0x420 => Self::SpecificEoi,
            0x480..=0x4F0 => Self::Ier(bank),
            0x500..=0x530 => Self::ExtendedLvt((offset >> 4) as u8 & 3),
            _ => return None,
        })
    }

    /// Every register that has a name, in the order of offsets.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::SLOTS).filter_map(|slot| Self::at(slot << 4))
    }

    /// How many 16-byte slots the registers take, from the start of the page.
    pub(crate) const SLOTS: u16 = 0x54;

    /// The register behind x2APIC MSR `msr`; `None` outside 800 to 8FF and for reserved numbers.
    ///
    /// The MSR of the register at page offset `o` is `800 + o / 16` (SDM Vol. 3A 10.12.1.2).
    #[must_use]
    pub const fn from_msr(msr: u32) -> Option<Self> {
        match msr {
            0x800..=0x8FF => Self::at(((msr & 0xFF) << 4) as u16),
            _ => None,
        }
    }

    /// The offset of the register's 16-byte slot in the page, in bytes.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u16 {
        match self {
            Self::Id => 0x020,
            Self::Version => 0x030,
            Self::Tpr => 0x080,
            Self::Apr => 0x090,
            Self::Ppr => 0x0A0,
            Self::Eoi => 0x0B0,
            Self::RemoteRead => 0x0C0,
            Self::Ldr => 0x0D0,
            Self::Dfr => 0x0E0,
            Self::Svr => 0x0F0,
            Self::Isr(bank) => 0x100 + 0x10 * bank.0 as u16,
            Self::Tmr(bank) => 0x180 + 0x10 * bank.0 as u16,
            Self::Irr(bank) => 0x200 + 0x10 * bank.0 as u16,
            Self::Esr => 0x280,
            Self::Lvt(LvtEntry::Cmci) => 0x2F0,
            Self::IcrLow => 0x300,
            Self::IcrHigh => 0x310,
            Self::Lvt(LvtEntry::Timer) => 0x320,
            Self::Lvt(LvtEntry::Thermal) => 0x330,
            Self::Lvt(LvtEntry::Performance) => 0x340,
            Self::Lvt(LvtEntry::Lint0) => 0x350,
            Self::Lvt(LvtEntry::Lint1) => 0x360,
            Self::Lvt(LvtEntry::Error) => 0x370,
            Self::InitialCount => 0x380,
            Self::CurrentCount => 0x390,
            Self::DivideConfiguration => 0x3E0,
            Self::SelfIpi => 0x3F0,
            Self::ExtendedFeature => 0x400,
            Self::ExtendedControl => 0x410,
            Self::SpecificEoi => 0x420,
            Self::Ier(bank) => 0x480 + 0x10 * bank.0 as u16,
            Self::ExtendedLvt(index) => 0x500 + 0x10 * (index & 3) as u16,
        }
    }

    /// The register's MSR number in x2APIC mode, whether or not that MSR exists there.
    #[must_use]
    pub const fn msr(self) -> u32 {
        0x800 + (self.offset() >> 4) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_and_at_are_inverse() {
        let mut named = 0;
        for offset in (0..0x1000).step_by(16) {
            if let Some(register) = Register::at(offset) {
                assert_eq!(register.offset(), offset);
                assert_eq!(Register::from_msr(register.msr()), Some(register));
                named += 1;
            }
        }
        assert_eq!(Register::all().count(), named);
        assert_eq!(named, 10 + 24 + 1 + 7 + 2 + 4 + 3 + 8 + 4);
    }

    #[test]
    fn reserved_places_have_no_name() {
        for offset in
            [0x000, 0x010, 0x040, 0x070, 0x290, 0x2E0, 0x3A0, 0x3D0, 0x430, 0x540, 0xFF0, 0x0F4]
        {
            assert_eq!(Register::at(offset), None, "{offset:#x}");
        }
        assert_eq!(Register::from_msr(0x7FF), None);
        assert_eq!(Register::from_msr(0x900), None);
    }
}
