//! What the APIC pages of a VM say about how hardware may route its IPIs.

use vlapic_core::{Mode, Register, Slot, Vm};

use crate::backing::Backing;
use crate::logical::LogicalModel;

/// What one vCPU's page and IA32_APIC_BASE say that matters to IPIs of others, in one word, since it is
/// compared at each entry.
///
/// | bits | |
/// |---|---|
/// | 31:28 | in xAPIC mode: bits 31:28 of DFR |
/// | 10 | the APIC ID is not the one that the tables are indexed by |
/// | 9, 8 | x2APIC mode, xAPIC mode |
/// | 7:0 | in xAPIC mode: bits 31:24 of LDR |
///
/// An APIC that accepts nothing says nothing: IPIs that it does take (NMI, INIT, SIPI) are never
/// hardware's to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressing(u32);

impl Addressing {
    /// Of an APIC that accepts nothing.
    pub(crate) const NONE: Self = Self(0);
    const X2APIC: Self = Self(1 << 9);
    const XAPIC: u32 = 1 << 8;
    const RENAMED: u32 = 1 << 10;

    pub(crate) fn of(slot: &Slot<'_, Backing>) -> Self {
        match slot.mode() {
            _ if !slot.accepts() => Self::NONE,
            Mode::Disabled => Self::NONE,
            Mode::X2Apic => Self::X2APIC,
            Mode::XApic => Self::in_xapic_mode(slot),
        }
    }

    /// Of an APIC that accepts and is in x2APIC mode or else in xAPIC mode.
    #[inline(always)]
    pub(crate) fn of_accepting(slot: &Slot<'_, Backing>, x2apic: bool) -> Self {
        if x2apic { Self::X2APIC } else { Self::in_xapic_mode(slot) }
    }

    #[inline(always)]
    fn in_xapic_mode(slot: &Slot<'_, Backing>) -> Self {
        let page = slot.page();
        let renamed =
            slot.profile().xapic_id_writable() && page.read(Register::Id) >> 24 != slot.x2apic_id();
        let word = page.read(Register::Dfr) & 0xF000_0000 | page.read(Register::Ldr) >> 24;
        Self(word | Self::XAPIC | if renamed { Self::RENAMED } else { 0 })
    }

    /// Bits 31:28 of DFR, in xAPIC mode.
    fn model(self) -> Option<u8> {
        (self.0 & Self::XAPIC != 0).then_some((self.0 >> 28) as u8)
    }

    /// The APIC ID is not the one that the tables are indexed by.
    pub(crate) const fn renamed(self) -> bool {
        self.0 & Self::RENAMED != 0
    }

    /// The byte offset of this vCPU's entry in the logical table.
    pub(crate) fn place(self) -> Option<u16> {
        LogicalModel::from_dfr(u32::from(self.model()?) << 28)?.entry_offset(self.0 as u8)
    }

    /// Whether the APIC accepts in xAPIC mode.
    pub(crate) const fn is_xapic(self) -> bool {
        self.0 & Self::XAPIC != 0
    }
}

/// What the pages of all vCPUs say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    /// The model of the logical table, if it has entries.
    pub(crate) model: Option<u8>,
    /// All who accept are in xAPIC mode, use one model, and have one bit each, all different.
    pub(crate) logical_ids_fit: bool,
    /// Somebody accepts in xAPIC mode.
    pub(crate) xapic: bool,
    /// Somebody accepts in x2APIC mode.
    pub(crate) x2apic: bool,
    /// Somebody has changed its APIC ID.
    pub(crate) renamed: bool,
}

impl Survey {
    /// Before anybody has looked.
    pub(crate) const NOBODY: Self =
        Self { model: None, logical_ids_fit: true, xapic: false, x2apic: false, renamed: false };

    /// Looks at every page. The caller has put a SeqCst fence between its own last store and this.
    pub(crate) fn of(vm: &Vm<'_, Backing>) -> Self {
        let mut survey = Self::NOBODY;
        let mut places = 0u64;
        let mut common = None;
        for slot in vm.slots() {
            let addressing = Addressing::of(slot);
            survey.x2apic |= addressing == Addressing::X2APIC;
            let Some(model) = addressing.model() else { continue };
            survey.xapic = true;
            survey.renamed |= addressing.renamed();
            let place = match addressing.place() {
                Some(offset) if slot.x2apic_id() < 0xFF => 1u64 << ((offset / 4) & 63),
                _ => 0,
            };
            if place == 0 || places & place != 0 || *common.get_or_insert(model) != model {
                survey.logical_ids_fit = false;
            }
            places |= place;
        }
        survey.logical_ids_fit &= !survey.x2apic || !survey.xapic;
        survey.model = common.filter(|_| survey.logical_ids_fit);
        survey
    }
}
