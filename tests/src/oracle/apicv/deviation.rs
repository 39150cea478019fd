//! Where a processor is known to differ from the manual, or to take another reading of it.

/// A known deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deviation {
    /// Without register virtualization, reads of page offsets 0B0 and 300 exit in spite of virtual-interrupt delivery.
    NoReadsByDelivery,
    /// A physical interrupt that meets an entry with RFLAGS.IF = 0 is neither processed nor an exit until RFLAGS is loaded.
    MaskedAfterEntry,
    /// Posted-interrupt processing sets RVI to the higher of RVI and VIRR, not to that of RVI and PIR.
    PostingRescansVirr,
    /// A recognized virtual interrupt is delivered in spite of RFLAGS.IF = 0 when a physical interrupt pends.
    DeliveredWithoutIf,
    /// Without register virtualization, a write anywhere in the 16 bytes of 0B0 or 300 is virtualized, not only at the exact
    /// offset; with it, one anywhere in those of 310 clears VICR_HI's low bytes and does not exit.
    WritesBySlot,
    /// WRMSR 80B stores no upper half, and a self-IPI by WRMSR 83F nothing.
    MsrsNotStored,
}

impl Deviation {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NoReadsByDelivery,
        Self::MaskedAfterEntry,
        Self::PostingRescansVirr,
        Self::DeliveredWithoutIf,
        Self::WritesBySlot,
        Self::MsrsNotStored,
    ];

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
            Self::DeliveredWithoutIf => {
                "Bochs: SDM Vol. 3C, virtual-interrupt delivery, asks for RFLAGS.IF = 1 whatever else pends"
            }
            Self::WritesBySlot => {
                "Bochs: SDM Vol. 3C, writes to the APIC-access page, names exact page offsets"
            }
            Self::MsrsNotStored => {
                "Bochs: SDM Vol. 3C, virtualizing MSR-based APIC accesses, stores EDX:EAX in the page"
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
    /// [`Deviation::DeliveredWithoutIf`].
    pub delivered_without_if: bool,
    /// [`Deviation::WritesBySlot`].
    pub writes_by_slot: bool,
    /// [`Deviation::MsrsNotStored`].
    pub msrs_not_stored: bool,
}

impl Quirks {
    /// Those of Bochs 3.0.
    pub const BOCHS: Self = Self {
        no_reads_by_delivery: true,
        masked_after_entry: true,
        posting_rescans_virr: true,
        delivered_without_if: true,
        writes_by_slot: true,
        msrs_not_stored: true,
    };

    /// The same processor without one of them.
    #[must_use]
    pub const fn without(mut self, deviation: Deviation) -> Self {
        match deviation {
            Deviation::NoReadsByDelivery => self.no_reads_by_delivery = false,
            Deviation::MaskedAfterEntry => self.masked_after_entry = false,
            Deviation::PostingRescansVirr => self.posting_rescans_virr = false,
            Deviation::DeliveredWithoutIf => self.delivered_without_if = false,
            Deviation::WritesBySlot => self.writes_by_slot = false,
            Deviation::MsrsNotStored => self.msrs_not_stored = false,
        }
        self
    }
}
