//! The logical APIC ID table of a VM.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use static_assertions::const_assert_eq;
use vlapic_hal::{PhysAddr, Translate};

use crate::error::TableError;
use crate::logical::LogicalEntry;

/// A logical APIC ID table, in the hardware's layout. The storage is the hypervisor's: write-back
/// memory that stays where it is for the VM's lifetime.
#[repr(C, align(4096))]
pub struct LogicalPage {
    entries: [AtomicU32; 1024],
}

const_assert_eq!(size_of::<LogicalPage>(), 4096);
const_assert_eq!(align_of::<LogicalPage>(), 4096);

impl LogicalPage {
    /// A table without valid entries.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [const { AtomicU32::new(0) }; 1024] }
    }

    /// The words, for silicon models.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU32; 1024] {
        &self.entries
    }
}

impl Default for LogicalPage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LogicalPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalPage").finish_non_exhaustive()
    }
}

/// The table and its protocol.
///
/// It has entries only while the logical IDs of all vCPUs that accept interrupts are fit for it;
/// without an entry an IPI exits and is emulated, which is always right. So entries are taken out
/// by anyone at any time, and put in with care, by their own vCPU's owner, in three steps: claim the
/// place, look at all pages, then make it valid unless somebody has cleared it meanwhile. Whoever
/// changes a logical ID, with its new value in the page, clears what no longer holds before its
/// guest runs on. Either the look finds the new value, or the clearing finds the claim.
#[derive(Clone, Copy, Debug)]
pub struct LogicalTable<'t> {
    page: &'t LogicalPage,
    address: PhysAddr,
}

/// No vCPU; 255 is no guest physical APIC ID of xAVIC.
const EMPTY: u32 = 0xFF;

/// 15 clusters of 4; flat IDs use the first 8 places.
const PLACES: usize = 60;

impl<'t> LogicalTable<'t> {
    /// The table over `page`, with every entry invalid.
    ///
    /// # Errors
    /// [`TableError::NoAddress`].
    pub fn new(page: &'t LogicalPage, translate: &impl Translate) -> Result<Self, TableError> {
        let address = translate.physical_address(page).ok_or(TableError::NoAddress)?;
        for entry in &page.entries {
            entry.store(EMPTY, Ordering::SeqCst);
        }
        Ok(Self { page, address })
    }

    /// Where the table begins, for the VMCB.
    #[must_use]
    pub const fn address(&self) -> PhysAddr {
        self.address
    }

    /// The entry at byte offset `offset`; invalid where there is none.
    #[must_use]
    pub fn entry(&self, offset: u16) -> LogicalEntry {
        LogicalEntry::from_bits(self.word(offset).map_or(EMPTY, |word| word.load(Ordering::SeqCst)))
    }

    /// Takes every entry out.
    pub(crate) fn clear(&self) {
        for word in self.places() {
            if word.load(Ordering::SeqCst) != EMPTY {
                word.swap(EMPTY, Ordering::SeqCst);
            }
        }
    }

    /// Takes out what leads, or is about to lead, to `id`.
    pub(crate) fn withdraw(&self, id: u8) {
        for word in self.places() {
            for present in [u32::from(id), LogicalEntry::leading_to(id).bits()] {
                let _ = word.compare_exchange(present, EMPTY, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
    }

    /// Claims the place at `offset` for `id`. `false` if it is somebody else's.
    pub(crate) fn claim(&self, offset: u16, id: u8) -> bool {
        let Some(word) = self.word(offset) else { return false };
        let claim = u32::from(id);
        match word.compare_exchange(EMPTY, claim, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(present) => present == claim || present == LogicalEntry::leading_to(id).bits(),
        }
    }

    /// Makes a claimed place lead to `id`, unless it was cleared since.
    pub(crate) fn publish(&self, offset: u16, id: u8) {
        if let Some(word) = self.word(offset) {
            let entry = LogicalEntry::leading_to(id).bits();
            let order = Ordering::SeqCst;
            let _ = word.compare_exchange(u32::from(id), entry, order, order);
        }
    }

    fn word(&self, offset: u16) -> Option<&'t AtomicU32> {
        self.places().get(usize::from(offset / 4))
    }

    fn places(&self) -> &'t [AtomicU32] {
        self.page.entries.get(..PLACES).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use vlapic_hal::fake::VirtualIsPhysical;

    use super::*;

    #[test]
    fn an_entry_is_claimed_then_published() {
        let page = Box::new(LogicalPage::new());
        let table = LogicalTable::new(&page, &VirtualIsPhysical).unwrap();
        for id in [0, 5, 254] {
            assert!(table.claim(0x14, id));
            assert!(!table.claim(0x14, 6), "somebody else's");
            assert_eq!(table.entry(0x14).guest_apic_id(), None, "a claim is not valid");
            table.publish(0x14, id);
            assert_eq!(page.words()[5].load(Ordering::SeqCst), 0x8000_0000 | u32::from(id));
            assert!(table.claim(0x14, id), "its own already");
            table.withdraw(6);
            assert_eq!(table.entry(0x14).guest_apic_id(), Some(id));
            table.withdraw(id);
            assert_eq!(table.entry(0x14).guest_apic_id(), None);
        }
    }

    #[test]
    fn what_was_cleared_is_not_published() {
        let page = Box::new(LogicalPage::new());
        let table = LogicalTable::new(&page, &VirtualIsPhysical).unwrap();
        assert!(table.claim(0x38, 5));
        table.clear();
        table.publish(0x38, 5);
        assert_eq!(table.entry(0x38).guest_apic_id(), None);
        assert!(table.claim(0x38, 5));
        table.withdraw(5);
        table.publish(0x38, 5);
        assert_eq!(table.entry(0x38).guest_apic_id(), None);
    }

    #[test]
    fn sixty_places() {
        let page = Box::new(LogicalPage::new());
        let table = LogicalTable::new(&page, &VirtualIsPhysical).unwrap();
        assert!(table.claim(4 * 59, 1));
        assert!(!table.claim(4 * 60, 1), "cluster F is the broadcast");
        assert_eq!(table.entry(4 * 60).guest_apic_id(), None);
    }
}
