//! The EOI-exit bitmap: which virtual EOIs come to the hypervisor.

use core::sync::atomic::{Ordering, fence};

use vlapic_core::{ApicPage, Lvt, LvtEntry, Slot};
use vlapic_hal::{Vmcs, VmcsError};

use crate::field::EOI_EXIT_BITMAP;
use crate::posting::Posting;

/// Brings the VMCS's bitmap in step with what has to exit: the vectors that level-triggered
/// sources may send, and those last accepted as level (TMR), which covers every one that is still
/// in IRR or ISR. SDM Vol. 3C 29.1.4.
///
/// Called where it may have to change: it does not fit a vector in IRR or ISR, or somebody asked
/// ([`Posting::review_eoi_exits`]). A bit too many costs an exit, and that exit asks.
///
/// A poster sets TMR, then looks whether its vector's bit is loaded, and stages the vector if not.
/// So a bit is dropped in the published copy first, and TMR looked at again after a fence: either
/// the poster sees the bit gone, or it is seen here and the bit stays.
///
/// # Errors
/// A VMWRITE that fails. Nothing is lost: the next call writes again. Until then fewer bits count
/// as loaded than the VMCS has, never more.
#[cold]
#[inline(never)]
pub(crate) fn load(vmcs: &mut impl Vmcs, slot: &Slot<'_, Posting<'_>>) -> Result<(), VmcsError> {
    slot.inbox().eoi_exits_reviewed();
    for index in 0..EOI_EXIT_BITMAP.len() {
        if wanted(slot, index) != slot.inbox().eoi_exits.word(index) {
            change(vmcs, slot, index).inspect_err(|_| slot.inbox().review_eoi_exits())?;
        }
    }
    Ok(())
}

fn change(
    vmcs: &mut impl Vmcs,
    slot: &Slot<'_, Posting<'_>>,
    index: usize,
) -> Result<(), VmcsError> {
    let published = &slot.inbox().eoi_exits;
    let loaded = published.word(index);
    published.set_word(index, loaded & wanted(slot, index));
    fence(Ordering::SeqCst);
    let now = wanted(slot, index);
    if now != loaded {
        vmcs.write(EOI_EXIT_BITMAP[index & 3], now)?;
    }
    published.set_word(index, now);
    Ok(())
}

/// A level-triggered LINT0 waits for the EOI of its vector even if an edge of the same vector,
/// accepted since, has cleared the vector's bit in TMR.
fn waiting_pin(slot: &Slot<'_, Posting<'_>>, index: usize) -> u64 {
    let lvt = slot.lvt(LvtEntry::Lint0);
    let waits = lvt.bits() & Lvt::REMOTE_IRR != 0 && usize::from(lvt.vector() >> 6) == index;
    if waits { 1 << (lvt.vector() & 63) } else { 0 }
}

/// All bits as not loaded, so that the next [`load`] writes what is needed. The fence keeps its look
/// at TMR behind the stores here, as in [`load`].
pub(crate) fn start(vmcs: &mut impl Vmcs, posting: &Posting<'_>) -> Result<(), VmcsError> {
    for (index, field) in EOI_EXIT_BITMAP.into_iter().enumerate() {
        posting.eoi_exits.set_word(index, 0);
        vmcs.write(field, 0)?;
    }
    fence(Ordering::SeqCst);
    posting.review_eoi_exits();
    Ok(())
}

/// Without virtual-interrupt delivery no EOI is virtualized: each comes to the hypervisor.
pub(crate) fn stop(posting: &Posting<'_>) {
    for index in 0..4 {
        posting.eoi_exits.set_word(index, u64::MAX);
    }
}

fn wanted(slot: &Slot<'_, Posting<'_>>, index: usize) -> u64 {
    slot.inbox().level_routes.word(index) | level(slot.page(), index) | waiting_pin(slot, index)
}

fn level(page: &ApicPage, index: usize) -> u64 {
    let tmr = page.tmr();
    u64::from(tmr.bank(2 * index + 1)) << 32 | u64::from(tmr.bank(2 * index))
}

#[cfg(test)]
mod tests;
