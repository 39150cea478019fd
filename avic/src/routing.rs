//! What the APIC pages of a VM say about how hardware may route its IPIs.

use vlapic_core::{Mode, Register, Slot, Vm};

use crate::backing::Backing;
use crate::logical::LogicalModel;

/// What one vCPU's page and IA32_APIC_BASE say that matters to IPIs of others.
///
/// An APIC that accepts nothing says nothing: IPIs that it does take (NMI, INIT, SIPI) are never
/// hardware's to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addressing {
    None,
    XApic {
        /// Bits 31:28 of DFR.
        model: u8,
        /// Bits 31:24 of LDR.
        logical_id: u8,
        /// The APIC ID is not the one that the tables are indexed by.
        renamed: bool,
    },
    X2Apic,
}

impl Addressing {
    #[inline]
    pub(crate) fn of(slot: &Slot<'_, Backing>) -> Self {
        if !slot.accepts() {
            return Self::None;
        }
        let page = slot.page();
        match slot.mode() {
            Mode::Disabled => Self::None,
            Mode::X2Apic => Self::X2Apic,
            Mode::XApic => Self::XApic {
                model: (page.read(Register::Dfr) >> 28) as u8,
                logical_id: (page.read(Register::Ldr) >> 24) as u8,
                renamed: slot.profile().xapic_id_writable()
                    && page.read(Register::Id) >> 24 != slot.x2apic_id(),
            },
        }
    }

    /// The byte offset of this vCPU's entry in the logical table.
    pub(crate) fn place(self) -> Option<u16> {
        let Self::XApic { model, logical_id, .. } = self else { return None };
        LogicalModel::from_dfr(u32::from(model) << 28)?.entry_offset(logical_id)
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
            match addressing {
                Addressing::None => {}
                Addressing::X2Apic => survey.x2apic = true,
                Addressing::XApic { model, renamed, .. } => {
                    survey.xapic = true;
                    survey.renamed |= renamed;
                    let place = match addressing.place() {
                        Some(offset) if slot.x2apic_id() < 0xFF => 1u64 << ((offset / 4) & 63),
                        _ => 0,
                    };
                    if place == 0 || places & place != 0 || *common.get_or_insert(model) != model {
                        survey.logical_ids_fit = false;
                    }
                    places |= place;
                }
            }
        }
        survey.logical_ids_fit &= !survey.x2apic || !survey.xapic;
        survey.model = common.filter(|_| survey.logical_ids_fit);
        survey
    }
}
