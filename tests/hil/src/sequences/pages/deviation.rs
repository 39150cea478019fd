//! What a processor does otherwise than a local APIC without its help.

use super::super::shared;

/// A known deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// A virtualized self-IPI is accepted while SVR bit 8 is 0.
    AcceptedWhileDisabled,
    /// A virtualized self-IPI leaves the TMR bit of an earlier level-triggered interrupt.
    TmrKept,
    /// A virtualized self-IPI by WRMSR 83F is not stored in the page.
    MsrNotStored,
}

impl Row {
    const ALL: [Self; 3] = [Self::AcceptedWhileDisabled, Self::TmrKept, Self::MsrNotStored];

    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::AcceptedWhileDisabled => {
                "SDM Vol. 3C self-IPI virtualization does not ask for SVR bit 8"
            }
            Self::TmrKept => "SDM Vol. 3C: processors never touch VTMR",
            Self::MsrNotStored => {
                "Bochs: SDM Vol. 3C, virtualizing MSR-based APIC accesses, stores EDX:EAX in the page"
            }
        }
    }
}

/// How often each row was used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rows([u64; 3]);

impl Rows {
    pub(super) fn add(&mut self, row: Row) {
        self.0[row as usize] += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Row, u64)> {
        Row::ALL.into_iter().zip(self.0).filter(|&(_, count)| count != 0)
    }
}

/// Page words that are compared: of PPR only what a guest reads counts, what stands there is the processor's.
pub(super) fn is_compared(offset: u16) -> bool {
    offset != 0x0a0
}

/// Words of the page that are kept of each step.
pub(super) const WORDS: usize = shared::WORDS;
