//! The physical APIC ID table of a VM.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use static_assertions::const_assert_eq;
use vlapic_hal::{PhysAddr, Translate};

use crate::error::TableError;
use crate::physical::{PhysicalEntry, PhysicalTarget};

/// 512 entries of a physical APIC ID table, in the hardware's layout. The storage is the
/// hypervisor's: write-back memory that stays where it is for the VM's lifetime.
///
/// One page serves xAVIC (255 entries) and x2AVIC; with the extension up to eight pages, one after
/// the other in physical memory, serve 4096 vCPUs.
#[repr(C, align(4096))]
pub struct PhysicalPage {
    entries: [AtomicU64; 512],
}

const_assert_eq!(size_of::<PhysicalPage>(), 4096);
const_assert_eq!(align_of::<PhysicalPage>(), 4096);

impl PhysicalPage {
    /// A page without valid entries.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [const { AtomicU64::new(0) }; 512] }
    }

    /// The words, for silicon models.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 512] {
        &self.entries
    }
}

impl Default for PhysicalPage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PhysicalPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysicalPage").finish_non_exhaustive()
    }
}

/// The table. Each entry is written by its vCPU's owner alone, with one 64-bit store; hardware
/// reads it at any moment.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalTable<'t> {
    pages: &'t [PhysicalPage],
    address: PhysAddr,
}

impl<'t> PhysicalTable<'t> {
    /// The most pages a table has.
    pub const MAX_PAGES: usize = 8;

    /// The table over `pages`, with every entry invalid.
    ///
    /// # Errors
    /// [`TableError`] if there are no pages or too many, or they have no address or do not follow
    /// each other in physical memory. Nothing was changed then.
    pub fn new(pages: &'t [PhysicalPage], translate: &impl Translate) -> Result<Self, TableError> {
        let first = pages.first().ok_or(TableError::Size(0))?;
        if pages.len() > Self::MAX_PAGES {
            return Err(TableError::Size(pages.len()));
        }
        let address = translate.physical_address(first).ok_or(TableError::NoAddress)?;
        for (index, page) in pages.iter().enumerate() {
            let place = translate.physical_address(page).ok_or(TableError::NoAddress)?;
            if place.as_u64() != address.as_u64().wrapping_add(4096 * index as u64) {
                return Err(TableError::NotContiguous(index));
            }
        }
        for entry in pages.iter().flat_map(|page| &page.entries) {
            entry.store(0, Ordering::SeqCst);
        }
        Ok(Self { pages, address })
    }

    /// Where the table begins, for the VMCB.
    #[must_use]
    pub const fn address(&self) -> PhysAddr {
        self.address
    }

    /// The highest index there is room for.
    #[must_use]
    pub const fn highest_index(&self) -> u16 {
        // At least one page and at most eight, by `new`.
        (self.pages.len() * 512 - 1) as u16
    }

    /// The entry of guest physical APIC ID `id`; invalid where there is none.
    #[must_use]
    pub fn entry(&self, id: u32) -> PhysicalEntry {
        let word = self.word(id).map_or(0, |word| word.load(Ordering::SeqCst));
        PhysicalEntry::from_bits(word)
    }

    /// Gives `id` its backing page, in a valid entry that does not run. `false` if there is no place
    /// for it.
    pub(crate) fn insert(&self, id: u32, backing_page: PhysAddr) -> Result<bool, TableError> {
        let target = PhysicalTarget { backing_page, host_apic_id: 0, running: false };
        let entry = target.encode().map_err(TableError::Encode)?;
        Ok(self.word(id).map(|word| word.store(entry.bits(), Ordering::SeqCst)).is_some())
    }

    /// The entry of guest physical APIC ID `id` for its owner to change.
    pub(crate) fn owned(&self, id: u32) -> OwnedEntry<'t> {
        OwnedEntry(self.word(id))
    }

    fn word(&self, id: u32) -> Option<&'t AtomicU64> {
        self.pages.get(id as usize / 512)?.entries.get(id as usize % 512)
    }
}

/// The entry of one vCPU in the hands of its owner: nobody else stores to it. Without a place in the
/// table there is none, hardware takes the vCPU for not running, and nothing here changes that.
///
/// Ordering: release stores. The owner's next look at IRR has a SeqCst fence before it, for its pair
/// with hardware's locked OR into IRR and look at IsRunning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnedEntry<'t>(Option<&'t AtomicU64>);

impl OwnedEntry<'_> {
    /// The entry as it stands.
    #[inline]
    pub(crate) fn get(self) -> PhysicalEntry {
        PhysicalEntry::from_bits(self.0.map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    /// Hardware may deliver to the vCPU from now on, or no longer.
    pub(crate) fn set_valid(self, valid: bool) {
        self.change(|entry| entry.with_valid(valid));
    }

    /// The vCPU is assigned to the CPU with APIC ID `host_apic_id`, of 12 bits.
    #[inline]
    pub(crate) fn run(self, host_apic_id: u16) {
        self.change(|entry| entry.running_on(host_apic_id));
    }

    /// The vCPU is not running. The host's APIC ID stays, so that a late doorbell hits no CPU that the
    /// vCPU never had.
    #[inline]
    pub(crate) fn stop(self) {
        self.change(PhysicalEntry::stopped);
    }

    #[inline]
    fn change(self, change: impl FnOnce(PhysicalEntry) -> PhysicalEntry) {
        let Some(word) = self.0 else { return };
        let old = PhysicalEntry::from_bits(word.load(Ordering::Relaxed));
        let new = change(old);
        if new != old {
            word.store(new.bits(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use vlapic_hal::fake::VirtualIsPhysical;

    use super::*;

    fn pages<const N: usize>() -> Box<[PhysicalPage; N]> {
        Box::new([const { PhysicalPage::new() }; N])
    }

    #[test]
    fn entries_stand_at_eight_times_their_id() {
        let storage = pages::<8>();
        let table = PhysicalTable::new(&storage[..], &VirtualIsPhysical).unwrap();
        assert_eq!(table.highest_index(), 0xFFF);
        for id in [0, 1, 254, 255, 511, 512, 4095] {
            let page = PhysAddr::new(0x1000 * (1 + u64::from(id)));
            assert_eq!(table.insert(id, page), Ok(true));
            let word = &storage[id as usize / 512].words()[id as usize % 512];
            assert_eq!(word.load(Ordering::SeqCst), 1 << 63 | page.as_u64());
            table.owned(id).set_valid(false);
            assert_eq!(word.load(Ordering::SeqCst), page.as_u64());
        }
        assert_eq!(table.insert(4096, PhysAddr::new(0)), Ok(false));
        assert_eq!(table.entry(4096), PhysicalEntry::INVALID);
        let nowhere = table.owned(4096);
        nowhere.run(0);
        nowhere.set_valid(true);
        assert_eq!(nowhere.get(), PhysicalEntry::INVALID);
        nowhere.stop();
    }

    #[test]
    fn stopping_keeps_the_host_id() {
        let storage = pages::<1>();
        let table = PhysicalTable::new(&storage[..], &VirtualIsPhysical).unwrap();
        let page = PhysAddr::new(0x12_3456_7000);
        assert_eq!(table.insert(3, page), Ok(true));
        let entry = table.owned(3);
        entry.set_valid(false);
        entry.run(0x1A5);
        assert_eq!(table.entry(3).decode(), None, "not valid yet");
        entry.set_valid(true);
        assert_eq!(table.entry(3).bits(), 0xC000_0012_3456_71A5);
        entry.run(0xF012);
        assert_eq!(table.entry(3).bits(), 0xC000_0012_3456_7012, "12 bits");
        entry.run(0x1A5);
        entry.stop();
        assert_eq!(table.entry(3).bits(), 0x8000_0012_3456_71A5);
        assert_eq!(entry.get(), table.entry(3));
        entry.set_valid(false);
        assert_eq!(table.entry(3).bits(), 0x0000_0012_3456_71A5);
    }

    #[test]
    fn storage_has_to_fit() {
        let none: &[PhysicalPage] = &[];
        let new = |pages| PhysicalTable::new(pages, &VirtualIsPhysical).map(|_| ());
        assert_eq!(new(none), Err(TableError::Size(0)));
        assert_eq!(new(&pages::<9>()[..]), Err(TableError::Size(9)));
    }

    #[test]
    fn pages_have_to_follow_each_other() {
        struct Scattered;
        impl Translate for Scattered {
            fn physical_address<T: ?Sized>(&self, object: &T) -> Option<PhysAddr> {
                let address = core::ptr::from_ref(object).cast::<u8>() as u64;
                Some(PhysAddr::new(2 * address))
            }
        }
        let storage = pages::<2>();
        let table = PhysicalTable::new(&storage[..], &Scattered);
        assert_eq!(table.map(|_| ()), Err(TableError::NotContiguous(1)));
    }
}
