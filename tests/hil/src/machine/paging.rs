//! The identity map.

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::{CpuId, CpuIdReaderNative};

unsafe extern "C" {
    static boot_pdpt: [AtomicU64; 512];
}

/// Present, writable, a 1 GiB page (SDM Vol. 3A Table 4-16).
const GIANT_PAGE: u64 = 0x83;

/// Stretches the boot map of 4 GiB to 512 GiB where the CPU has 1 GiB pages: firmware may put tables above 4 GiB.
pub(crate) fn extend() {
    let giant = CpuId::<CpuIdReaderNative>::new().get_extended_processor_and_feature_identifiers();
    if !giant.is_some_and(|features| features.has_1gib_pages()) {
        return;
    }
    // SAFETY: the boot assembly defines this table of 512 entries, aligned and never freed.
    let table = unsafe { &boot_pdpt };
    for (index, entry) in table.iter().enumerate().skip(4) {
        // The entries were not present, so no CPU can have cached them (SDM Vol. 3A 4.10.2.3).
        entry.store((index as u64) << 30 | GIANT_PAGE, Ordering::Relaxed);
    }
}
