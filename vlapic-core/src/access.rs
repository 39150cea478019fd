//! Who may do what to which register: one table for memory and MSR accesses.

use crate::base::Mode;
use crate::profile::{Profile, Vendor};
use crate::register::{LvtEntry, Register};

/// What a guest may do to a register in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Not there. Memory: reserved offset, ESR bit 7. MSR: #GP.
    Absent,
    /// Memory: writes are ignored. MSR: writes #GP.
    ReadOnly,
    /// Memory: reads as zero. MSR: reads #GP.
    WriteOnly,
    /// Both.
    ReadWrite,
}

impl Access {
    /// The row of the table for `register` (SDM Vol. 3A Tables 10-1 and 10-6; APM Vol. 2 Tables
    /// 16-2 and 16-6).
    ///
    /// In [`Mode::Disabled`] every register is absent.
    #[must_use]
    pub const fn of(register: Register, mode: Mode, profile: &Profile) -> Self {
        match mode {
            Mode::Disabled => Self::Absent,
            Mode::XApic => Self::in_xapic(register, profile),
            Mode::X2Apic => Self::in_x2apic(register, profile),
        }
    }

    /// Whether a read is answered.
    #[must_use]
    pub const fn readable(self) -> bool {
        matches!(self, Self::ReadOnly | Self::ReadWrite)
    }

    /// Whether a write is taken.
    #[must_use]
    pub const fn writable(self) -> bool {
        matches!(self, Self::WriteOnly | Self::ReadWrite)
    }

    const fn in_xapic(register: Register, profile: &Profile) -> Self {
        match register {
            Register::Id => {
                if profile.xapic_id_writable() {
                    Self::ReadWrite
                } else {
                    Self::ReadOnly
                }
            }
            // Not implemented since Pentium 4, yet not reserved: no ESR bit 7 (Table 10-1 note).
            Register::Apr | Register::RemoteRead => Self::ReadOnly,
            Register::Ldr | Register::Dfr | Register::IcrHigh => Self::ReadWrite,
            Register::SelfIpi => Self::Absent,
            _ => Self::in_both(register, profile),
        }
    }

    const fn in_x2apic(register: Register, profile: &Profile) -> Self {
        match register {
            Register::Id | Register::Ldr => Self::ReadOnly,
            Register::Apr => match profile.vendor() {
                Vendor::Intel => Self::Absent,
                Vendor::Amd => Self::ReadOnly,
            },
            Register::RemoteRead | Register::Dfr | Register::IcrHigh => Self::Absent,
            Register::SelfIpi => Self::WriteOnly,
            _ => Self::in_both(register, profile),
        }
    }

    const fn in_both(register: Register, profile: &Profile) -> Self {
        match register {
            Register::Version
            | Register::Ppr
            | Register::Isr(_)
            | Register::Tmr(_)
            | Register::Irr(_)
            | Register::CurrentCount => Self::ReadOnly,
            Register::Eoi => Self::WriteOnly,
            Register::Lvt(LvtEntry::Cmci) if !profile.cmci() => Self::Absent,
            Register::ExtendedFeature if profile.extended_space() => Self::ReadOnly,
            Register::SpecificEoi if profile.extended_space() => Self::ReadWrite,
            Register::ExtendedControl | Register::Ier(_) | Register::ExtendedLvt(_)
                if profile.extended_space() =>
            {
                Self::ReadWrite
            }
            Register::ExtendedFeature
            | Register::ExtendedControl
            | Register::SpecificEoi
            | Register::Ier(_)
            | Register::ExtendedLvt(_) => Self::Absent,
            _ => Self::ReadWrite,
        }
    }
}

/// The bits of `register` that a write in x2APIC mode must leave zero, else #GP (SDM Vol. 3A Table
/// 10-6 and Figures 10-8, 10-10, 10-28; APM Vol. 2 16.11).
///
/// Where silicon is not known to fault, the write is let through and the bit dropped: LVT bits 12
/// and 14 (read-only in xAPIC mode), SVR bit 9, and bit 12 of Intel's ICR.
#[inline]
#[must_use]
pub const fn reserved_in_x2apic(register: Register, profile: &Profile) -> u64 {
    const HIGH: u64 = 0xFFFF_FFFF_0000_0000;
    let amd = matches!(profile.vendor(), Vendor::Amd);
    match register {
        Register::Tpr | Register::SelfIpi | Register::SpecificEoi => HIGH | 0xFFFF_FF00,
        Register::Eoi | Register::Esr => HIGH | 0xFFFF_FFFF,
        Register::Svr => HIGH | if profile.eoi_suppression() { 0xFFFF_EC00 } else { 0xFFFF_FC00 },
        Register::Lvt(LvtEntry::Cmci | LvtEntry::Thermal | LvtEntry::Performance)
        | Register::ExtendedLvt(_) => HIGH | 0xFFFE_E800,
        Register::IcrLow => {
            if amd {
                0xFFF3_3000
            } else {
                0xFFF3_2000
            }
        }
        Register::Lvt(LvtEntry::Timer) => {
            HIGH | if profile.tsc_deadline() { 0xFFF8_EF00 } else { 0xFFFC_EF00 }
        }
        Register::Lvt(LvtEntry::Lint0 | LvtEntry::Lint1) => {
            HIGH | if amd { 0xFFFE_2800 } else { 0xFFFE_0800 }
        }
        Register::Lvt(LvtEntry::Error) => HIGH | if amd { 0xFFFE_E800 } else { 0xFFFE_EF00 },
        Register::DivideConfiguration => HIGH | 0xFFFF_FFF4,
        Register::ExtendedControl => HIGH | 0xFFFF_FFF8,
        _ => HIGH,
    }
}

/// The bits of `register` that keep what the guest writes to them; the others read as the
/// manuals fix them (SDM Vol. 3A Table 10-1 and the register figures).
#[inline]
#[must_use]
pub const fn stored_bits(register: Register, profile: &Profile) -> u32 {
    let amd = matches!(profile.vendor(), Vendor::Amd);
    match register {
        Register::Id | Register::Ldr | Register::IcrHigh => 0xFF00_0000,
        Register::Tpr => 0xFF,
        Register::Dfr => 0xF000_0000,
        Register::Svr => {
            0x1FF
                | if profile.focus_check() { 0x200 } else { 0 }
                | if profile.eoi_suppression() { 0x1000 } else { 0 }
        }
        Register::Lvt(LvtEntry::Cmci | LvtEntry::Thermal | LvtEntry::Performance)
        | Register::ExtendedLvt(_) => 0x0001_07FF,
        Register::Lvt(LvtEntry::Timer) => {
            if profile.tsc_deadline() {
                0x0007_00FF
            } else {
                0x0003_00FF
            }
        }
        Register::Lvt(LvtEntry::Lint0 | LvtEntry::Lint1) => {
            if amd {
                0x0001_87FF
            } else {
                0x0001_A7FF
            }
        }
        Register::Lvt(LvtEntry::Error) => {
            if amd {
                0x0001_07FF
            } else {
                0x0001_00FF
            }
        }
        Register::IcrLow => 0x000C_CFFF,
        Register::InitialCount | Register::Ier(_) => 0xFFFF_FFFF,
        Register::DivideConfiguration => 0xB,
        Register::ExtendedControl => 0x7,
        Register::SpecificEoi | Register::SelfIpi => 0xFF,
        _ => 0,
    }
}
