//! Nested paging of the guest's APIC window, and what the TLB remembers of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where nested page tables map guest-physical pages, as far as the model needs it. One object holds the tables of all
/// VMs, told apart by their N_CR3.
#[derive(Debug, Default)]
pub struct NestedPages {
    mappings: Mutex<BTreeMap<(u64, u64), Mapping>>,
}

/// A present entry of a nested page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Host-physical address of the page.
    pub page: u64,
    /// Whether the guest may write.
    pub writable: bool,
}

impl NestedPages {
    /// Nothing mapped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps a guest-physical page. What a TLB holds stays until it is flushed.
    pub fn map(&self, nested_cr3: u64, guest_page: u64, mapping: Mapping) {
        self.all().insert((nested_cr3, guest_page), mapping);
    }

    /// Unmaps a guest-physical page. What a TLB holds stays until it is flushed.
    pub fn unmap(&self, nested_cr3: u64, guest_page: u64) {
        self.all().remove(&(nested_cr3, guest_page));
    }

    pub(super) fn walk(&self, nested_cr3: u64, guest_page: u64) -> Option<Mapping> {
        self.all().get(&(nested_cr3, guest_page)).copied()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), Mapping>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a translation leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Translation {
    /// A backing page, whose registers the access table governs.
    Apic { backing_page: u64 },
    /// Ordinary memory.
    Memory(Mapping),
}

/// The translations that one core remembers, by ASID and guest-physical page.
#[derive(Debug, Clone, Default)]
pub(super) struct Tlb {
    entries: BTreeMap<(u32, u64), Translation>,
}

impl Tlb {
    pub(super) fn get(&self, asid: u32, guest_page: u64) -> Option<Translation> {
        self.entries.get(&(asid, guest_page)).copied()
    }

    pub(super) fn insert(&mut self, asid: u32, guest_page: u64, translation: Translation) {
        self.entries.insert((asid, guest_page), translation);
    }

    /// Carries out TLB_CONTROL.
    pub(super) fn flush(&mut self, control: u8, asid: u32) {
        match control {
            1 => self.entries.clear(),
            3 | 7 => self.entries.retain(|(owner, _), _| *owner != asid),
            _ => {}
        }
    }
}
