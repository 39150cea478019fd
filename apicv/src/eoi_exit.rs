//! The EOI-exit bitmap: which virtual EOIs come to the hypervisor.

use core::sync::atomic::{Ordering, fence};

use vlapic_core::ApicPage;
use vlapic_hal::{Vmcs, VmcsError};

use crate::field::EOI_EXIT_BITMAP;
use crate::posting::Posting;

/// Brings the VMCS's bitmap in step with what has to exit: the vectors that level-triggered
/// sources may send, and those last accepted as level (TMR), which covers every one that is still
/// in IRR or ISR. Four comparisons if nothing changed. SDM Vol. 3C 29.1.4.
///
/// A poster sets TMR, then looks whether its vector's bit is loaded, and stages the vector if not.
/// So a bit is dropped in the published copy first, and TMR looked at again after a fence: either
/// the poster sees the bit gone, or it is seen here and the bit stays.
///
/// # Errors
/// A VMWRITE that fails. Nothing is lost: the next call writes again.
#[inline]
pub(crate) fn load(
    vmcs: &mut impl Vmcs,
    posting: &Posting<'_>,
    page: &ApicPage,
) -> Result<(), VmcsError> {
    for (index, field) in EOI_EXIT_BITMAP.into_iter().enumerate() {
        let loaded = posting.eoi_exits.word(index);
        if wanted(posting, page, index) != loaded {
            posting.eoi_exits.set_word(index, loaded & wanted(posting, page, index));
            fence(Ordering::SeqCst);
            let now = wanted(posting, page, index);
            vmcs.write(field, now)?;
            posting.eoi_exits.set_word(index, now);
        }
    }
    Ok(())
}

/// All bits as not loaded, so that the next [`load`] writes what is needed.
pub(crate) fn start(vmcs: &mut impl Vmcs, posting: &Posting<'_>) -> Result<(), VmcsError> {
    for (index, field) in EOI_EXIT_BITMAP.into_iter().enumerate() {
        posting.eoi_exits.set_word(index, 0);
        vmcs.write(field, 0)?;
    }
    Ok(())
}

/// Without virtual-interrupt delivery no EOI is virtualized: each comes to the hypervisor.
pub(crate) fn stop(posting: &Posting<'_>) {
    for index in 0..4 {
        posting.eoi_exits.set_word(index, u64::MAX);
    }
}

#[inline]
fn wanted(posting: &Posting<'_>, page: &ApicPage, index: usize) -> u64 {
    let tmr = page.tmr();
    let level = u64::from(tmr.bank(2 * index + 1)) << 32 | u64::from(tmr.bank(2 * index));
    posting.level_routes.word(index) | level
}
