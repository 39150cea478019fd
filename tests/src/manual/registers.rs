//! Every register: where it is, what may be done to it, which bits it keeps and which fault. SDM Vol.
//! 3A Tables 10-1 and 10-6 and the registers' figures; APM Vol. 2 Tables 16-2 and 16-6.
//!
//! For a recent APIC of each vendor: Intel with CMCI, TSC-deadline timer and suppression of EOI
//! broadcasts; AMD with the extended space and the TSC-deadline timer.

use vlapic_core::Vendor;

/// What software may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Ro,
    /// Write.
    Wo,
    /// Both.
    Rw,
    /// Nothing: there is no such register.
    No,
}

use Access::{No, Ro, Rw, Wo};

/// One register or a row of equal ones.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    first: u16,
    last: u16,
    /// In xAPIC mode, in x2APIC mode.
    access: [Access; 2],
    /// The bits that keep what is written.
    pub keeps: u32,
    /// The bits of 31:0 that WRMSR must leave zero. Those of 63:32 always, but for ICR.
    pub faults: u32,
}

impl Row {
    /// What may be done in the mode.
    #[must_use]
    pub const fn access(&self, x2apic: bool) -> Access {
        self.access[x2apic as usize]
    }
}

const fn row(first: u16, last: u16, access: [Access; 2], keeps: u32, faults: u32) -> Row {
    Row { first, last, access, keeps, faults }
}

const INTEL: &[Row] = &[
    row(0x020, 0x020, [Ro, Ro], 0, 0),
    row(0x030, 0x030, [Ro, Ro], 0, 0),
    row(0x080, 0x080, [Rw, Rw], 0x0000_00FF, 0xFFFF_FF00),
    row(0x090, 0x090, [Ro, No], 0, 0),
    row(0x0A0, 0x0A0, [Ro, Ro], 0, 0),
    row(0x0B0, 0x0B0, [Wo, Wo], 0, 0xFFFF_FFFF),
    row(0x0C0, 0x0C0, [Ro, No], 0, 0),
    row(0x0D0, 0x0D0, [Rw, Ro], 0xFF00_0000, 0),
    row(0x0E0, 0x0E0, [Rw, No], 0xF000_0000, 0),
    row(0x0F0, 0x0F0, [Rw, Rw], 0x0000_11FF, 0xFFFF_EC00),
    row(0x100, 0x270, [Ro, Ro], 0, 0),
    row(0x280, 0x280, [Rw, Rw], 0, 0xFFFF_FFFF),
    row(0x2F0, 0x2F0, [Rw, Rw], 0x0001_07FF, 0xFFFE_E800),
    row(0x300, 0x300, [Rw, Rw], 0x000C_CFFF, 0xFFF3_2000),
    row(0x310, 0x310, [Rw, No], 0xFF00_0000, 0),
    row(0x320, 0x320, [Rw, Rw], 0x0007_00FF, 0xFFF8_EF00),
    row(0x330, 0x340, [Rw, Rw], 0x0001_07FF, 0xFFFE_E800),
    row(0x350, 0x360, [Rw, Rw], 0x0001_A7FF, 0xFFFE_0800),
    row(0x370, 0x370, [Rw, Rw], 0x0001_00FF, 0xFFFE_EF00),
    row(0x380, 0x380, [Rw, Rw], 0xFFFF_FFFF, 0),
    row(0x390, 0x390, [Ro, Ro], 0, 0),
    row(0x3E0, 0x3E0, [Rw, Rw], 0x0000_000B, 0xFFFF_FFF4),
    row(0x3F0, 0x3F0, [No, Wo], 0, 0xFFFF_FF00),
];

const AMD: &[Row] = &[
    row(0x020, 0x020, [Ro, Ro], 0, 0),
    row(0x030, 0x030, [Ro, Ro], 0, 0),
    row(0x080, 0x080, [Rw, Rw], 0x0000_00FF, 0xFFFF_FF00),
    row(0x090, 0x090, [Ro, Ro], 0, 0),
    row(0x0A0, 0x0A0, [Ro, Ro], 0, 0),
    row(0x0B0, 0x0B0, [Wo, Wo], 0, 0xFFFF_FFFF),
    row(0x0C0, 0x0C0, [Ro, No], 0, 0),
    row(0x0D0, 0x0D0, [Rw, Ro], 0xFF00_0000, 0),
    row(0x0E0, 0x0E0, [Rw, No], 0xF000_0000, 0),
    row(0x0F0, 0x0F0, [Rw, Rw], 0x0000_03FF, 0xFFFF_FC00),
    row(0x100, 0x270, [Ro, Ro], 0, 0),
    row(0x280, 0x280, [Rw, Rw], 0, 0xFFFF_FFFF),
    row(0x300, 0x300, [Rw, Rw], 0x000C_CFFF, 0xFFF3_3000),
    row(0x310, 0x310, [Rw, No], 0xFF00_0000, 0),
    row(0x320, 0x320, [Rw, Rw], 0x0007_00FF, 0xFFF8_EF00),
    row(0x330, 0x340, [Rw, Rw], 0x0001_07FF, 0xFFFE_E800),
    row(0x350, 0x360, [Rw, Rw], 0x0001_87FF, 0xFFFE_2800),
    row(0x370, 0x370, [Rw, Rw], 0x0001_07FF, 0xFFFE_E800),
    row(0x380, 0x380, [Rw, Rw], 0xFFFF_FFFF, 0),
    row(0x390, 0x390, [Ro, Ro], 0, 0),
    row(0x3E0, 0x3E0, [Rw, Rw], 0x0000_000B, 0xFFFF_FFF4),
    row(0x3F0, 0x3F0, [No, Wo], 0, 0xFFFF_FF00),
    row(0x400, 0x400, [Ro, Ro], 0, 0),
    row(0x410, 0x410, [Rw, Rw], 0x0000_0007, 0xFFFF_FFF8),
    row(0x420, 0x420, [Rw, Rw], 0x0000_00FF, 0xFFFF_FF00),
    row(0x480, 0x4F0, [Rw, Rw], 0xFFFF_FFFF, 0),
    row(0x500, 0x530, [Rw, Rw], 0x0001_07FF, 0xFFFE_E800),
];

/// The row of the register whose slot begins at `offset`; `None` where the manuals have none.
#[must_use]
pub fn find(offset: u16, vendor: Vendor) -> Option<Row> {
    let table = match vendor {
        Vendor::Intel => INTEL,
        Vendor::Amd => AMD,
    };
    table.iter().find(|row| (row.first..=row.last).contains(&offset)).copied()
}
