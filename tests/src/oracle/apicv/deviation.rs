//! Where a processor is known to differ from the manual, or to take another reading of it.

/// A known deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deviation {
    /// Without register virtualization, reads of page offsets 0B0 and 300 exit in spite of virtual-interrupt delivery.
    NoReadsByDelivery,
    /// A physical interrupt that meets an entry with RFLAGS.IF = 0 is neither processed nor an exit until IF changes.
    MaskedAfterEntry,
    /// Posted-interrupt processing sets RVI to the highest vector of VIRR, not to the higher of RVI and PIR.
    PostingRescansVirr,
}

impl Deviation {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::NoReadsByDelivery, Self::MaskedAfterEntry, Self::PostingRescansVirr];

    /// What it breaks.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoReadsByDelivery => {
                "printings of the SDM before 2021 do not virtualize these reads, newer ones do (Vol. 3C, reads from the APIC-access page)"
            }
            Self::MaskedAfterEntry => {
                "Bochs D2: external-interrupt exiting does not ask for RFLAGS.IF (SDM Vol. 3C, pin-based controls)"
            }
            Self::PostingRescansVirr => {
                "Bochs: SDM Vol. 3C, posted-interrupt processing, step 6; differs where software left RVI below VIRR"
            }
        }
    }
}

/// Which of the deviations the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks {
    /// [`Deviation::NoReadsByDelivery`].
    pub no_reads_by_delivery: bool,
    /// [`Deviation::MaskedAfterEntry`].
    pub masked_after_entry: bool,
    /// [`Deviation::PostingRescansVirr`].
    pub posting_rescans_virr: bool,
}

impl Quirks {
    /// Those of Bochs 3.0.
    pub const BOCHS: Self =
        Self { no_reads_by_delivery: true, masked_after_entry: true, posting_rescans_virr: true };
}
