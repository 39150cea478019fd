//! RVI and SVI: what the processor is told of IRR and ISR.

use vlapic_core::{ApicPage, Slot};
use vlapic_hal::{Vmcs, VmcsError};

use crate::eoi_exit;
use crate::field::GUEST_INTERRUPT_STATUS;
use crate::posting::Posting;

/// Brings the VMCS in step with the page: RVI := highest in IRR, SVI := highest in ISR (SDM Vol. 3C
/// 24.4.2), and the EOI-exit bit of each level-triggered vector among them. PIR may have been empty
/// although ON was set, so IRR is scanned in any case.
///
/// # Errors
/// A VMREAD or VMWRITE that fails. Nothing is lost: the next call does it again.
#[inline]
pub(crate) fn load(vmcs: &mut impl Vmcs, slot: &Slot<'_, Posting<'_>>) -> Result<(), VmcsError> {
    let held = Held::by(slot.page(), slot.inbox());
    if held.eoi_exits_wrong || slot.inbox().eoi_exits_due() {
        eoi_exit::load(vmcs, slot)?;
    }
    let status = u64::from(held.in_service) << 8 | u64::from(held.requested);
    if vmcs.read(GUEST_INTERRUPT_STATUS)? != status {
        vmcs.write(GUEST_INTERRUPT_STATUS, status)?;
    }
    Ok(())
}

/// What the page holds.
#[derive(Clone, Copy)]
struct Held {
    /// The highest vector in IRR, 0 if there is none.
    requested: u8,
    /// The highest vector in ISR, 0 if there is none.
    in_service: u8,
    /// The EOI-exit bitmap has not the bit of a level-triggered vector in one of them, as if the page
    /// was replaced by somebody who did not say so, or has that of an edge-triggered one.
    eoi_exits_wrong: bool,
}

impl Held {
    const NOTHING: Self = Self { requested: 0, in_service: 0, eoi_exits_wrong: false };

    /// One pass over IRR and ISR; TMR is only looked at where they are not empty.
    #[inline]
    fn by(page: &ApicPage, posting: &Posting<'_>) -> Self {
        let empty = |&index: &usize| page.irr().bank(index) | page.isr().bank(index) == 0;
        match (0..8).rev().find(|index| !empty(index)) {
            Some(index) => Self::up_to(index, page, posting),
            None => Self::NOTHING,
        }
    }

    /// The banks above `highest_bank` are empty.
    #[inline(never)]
    fn up_to(highest_bank: usize, page: &ApicPage, posting: &Posting<'_>) -> Self {
        let mut held = Self::NOTHING;
        for index in (1..highest_bank + 1).rev() {
            held.add(index, page, posting);
        }
        held.add(0, page, posting);
        held
    }

    /// Adds a bank; the highest come first.
    #[inline]
    fn add(&mut self, index: usize, page: &ApicPage, posting: &Posting<'_>) {
        let (requests, services) = (page.irr().bank(index), page.isr().bank(index));
        if requests | services == 0 {
            return;
        }
        if self.requested == 0 {
            self.requested = highest(index, requests);
        }
        if self.in_service == 0 {
            self.in_service = highest(index, services);
        }
        let exits = (posting.eoi_exits.word(index / 2) >> (32 * (index & 1))) as u32;
        let wrong = (page.tmr().bank(index) ^ exits) & (requests | services);
        self.eoi_exits_wrong |= wrong != 0;
    }
}

/// The highest vector in `word`, bank `index`; 0 if it is empty.
#[inline]
fn highest(index: usize, word: u32) -> u8 {
    match word.checked_ilog2() {
        Some(bit) => (index as u32 * 32 + bit) as u8,
        None => 0,
    }
}
