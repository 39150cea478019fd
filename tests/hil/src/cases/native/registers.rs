//! The registers that are compared after each operation.

use vlapic_core::Mode;

use super::operation::{
    CMCI, CURRENT_COUNT, DFR, DIVIDE, ESR, ICR, ICR_HIGH, INITIAL_COUNT, LDR, LVT_TIMER, SVR, TPR,
};
use super::subject::Subject;

/// A register and which of its bits count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    pub(super) offset: u16,
    pub(super) bits: u64,
}

/// All that software can read, but what is time or the processor's own number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    list: [Compared; Self::MOST],
    count: usize,
}

impl Registers {
    pub(super) const MOST: usize = 48;

    pub(super) fn of(subject: &Subject) -> Self {
        let mut all = Self { list: [Compared { offset: 0, bits: 0 }; Self::MOST], count: 0 };
        all.add(0x20, u64::MAX);
        // The version number proper is each processor's own.
        all.add(0x30, !0xff);
        all.add(TPR, u64::MAX);
        if subject.amd() {
            // On Intel not implemented since Pentium 4 (SDM Vol. 3A Table 10-1).
            all.add(0x90, u64::MAX);
        }
        all.add(0xa0, u64::MAX);
        all.add(LDR, u64::MAX);
        all.add(SVR, u64::MAX);
        for bank in 0..24 {
            all.add(0x100 + 0x10 * bank, u64::MAX);
        }
        all.add(ESR, u64::MAX);
        if subject.profile.cmci() {
            all.add(CMCI, u64::MAX);
        }
        // Bit 12 says that the message is still on its way.
        all.add(ICR, !(1 << 12));
        for entry in 0..6 {
            all.add(LVT_TIMER + 0x10 * entry, u64::MAX);
        }
        all.add(INITIAL_COUNT, u64::MAX);
        all.add(CURRENT_COUNT, u64::MAX);
        all.add(DIVIDE, u64::MAX);
        if subject.mode == Mode::XApic {
            all.add(DFR, u64::MAX);
            all.add(ICR_HIGH, u64::MAX);
        }
        all
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Compared)> + '_ {
        self.list[..self.count].iter().copied().enumerate()
    }

    fn add(&mut self, offset: u16, bits: u64) {
        self.list[self.count] = Compared { offset, bits };
        self.count += 1;
    }
}

/// What counts of a register's value: of the current count only whether it runs.
pub(super) const fn comparable(register: Compared, value: u64) -> u64 {
    match register.offset {
        CURRENT_COUNT => (value != 0) as u64,
        _ => value & register.bits,
    }
}
