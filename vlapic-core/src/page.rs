//! The 4 KiB page that is the local APIC's state.

use core::sync::atomic::{AtomicU32, Ordering};

use static_assertions::const_assert_eq;

use crate::register::Register;
use crate::svr::Svr;
use crate::vectors::VectorSet;

/// A virtual-APIC page (Intel) or backing page (AMD), in the hardware's layout.
///
/// Register `r` is the 32-bit word at byte offset `r.offset()`. Processor microcode, the vCPU's
/// owner, remote posters and (where a hypervisor maps the page into its guest) the guest itself
/// may all store to it at any moment, so every word is atomic and nothing read from it is trusted
/// until checked. SDM Vol. 3C 29.1; APM Vol. 2 15.29.3.
///
/// Plain accesses here are relaxed. Who needs more says so at the place of use.
#[repr(C, align(4096))]
pub struct ApicPage {
    words: [AtomicU32; 1024],
}

const_assert_eq!(size_of::<ApicPage>(), 4096);
const_assert_eq!(align_of::<ApicPage>(), 4096);

impl ApicPage {
    /// A page of zeroes. [`LocalApic::new`](crate::LocalApic::new) gives it its reset contents.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [const { AtomicU32::new(0) }; 1024] }
    }

    /// The value of `register` as it stands in the page.
    #[inline]
    #[must_use]
    pub fn read(&self, register: Register) -> u32 {
        self.load(register.offset())
    }

    /// Stores `value` as the value of `register`, unchecked and without side effects.
    #[inline]
    pub fn write(&self, register: Register, value: u32) {
        self.store(register.offset(), value);
    }

    /// The spurious-interrupt vector register: one load.
    #[inline]
    #[must_use]
    pub fn svr(&self) -> Svr {
        Svr::from_bits(self.read(Register::Svr))
    }

    /// The interrupt-request register.
    #[inline]
    #[must_use]
    pub fn irr(&self) -> VectorSet<'_> {
        VectorSet::new(self, 0x200)
    }

    /// The in-service register.
    #[inline]
    #[must_use]
    pub fn isr(&self) -> VectorSet<'_> {
        VectorSet::new(self, 0x100)
    }

    /// The trigger-mode register.
    #[inline]
    #[must_use]
    pub fn tmr(&self) -> VectorSet<'_> {
        VectorSet::new(self, 0x180)
    }

    /// The word at byte offset `offset`; bits 1:0 and 15:12 of the offset are ignored.
    #[inline]
    #[must_use]
    pub fn load(&self, offset: u16) -> u32 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Stores the word at byte offset `offset`; bits 1:0 and 15:12 of the offset are ignored.
    #[inline]
    pub fn store(&self, offset: u16, value: u32) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// All words, for silicon models and for export.
    #[inline]
    #[must_use]
    pub const fn words(&self) -> &[AtomicU32; 1024] {
        &self.words
    }

    #[inline]
    pub(crate) fn word(&self, offset: u16) -> &AtomicU32 {
        // The mask keeps the index below 1024, so no bounds check is left.
        &self.words[usize::from(offset) >> 2 & 1023]
    }
}

impl Default for ApicPage {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for ApicPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ApicPage")
            .field("svr", &self.svr())
            .field("irr", &self.irr())
            .field("isr", &self.isr())
            .finish_non_exhaustive()
    }
}
