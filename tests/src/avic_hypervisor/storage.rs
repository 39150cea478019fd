//! The memory of a VM and where it lies.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use avic::{
    Backing, GaLogPage, IrteCell, LogicalPage, MsrPermissions, PhysicalPage, Route, Window,
};
use vlapic_core::{ApicPage, Slot};

use super::Config;
use crate::model::Memory;

const PAGES: u64 = 0x1000_0000;
const MSR_PERMISSIONS: u64 = 0x3000_0000;
const LOGICAL: u64 = 0x10_1000;
const PHYSICAL: u64 = 0x11_0000;
const REMAPPING: u64 = 0x12_0000;
const LOG: u64 = 0x14_0000;
const BEHIND_WINDOW: u64 = 0x10_0000;

/// What the vCPUs' APICs are made of.
#[derive(Debug)]
pub struct Storage {
    pages: Box<[ApicPage]>,
    permissions: Box<[MsrPermissions]>,
    pub(super) irtes: Box<[IrteCell]>,
    pub(crate) physical: Box<[PhysicalPage]>,
    pub(crate) logical: Box<LogicalPage>,
    pub(super) log: Box<GaLogPage>,
    pub(crate) window: Window,
    behind_window: Box<[AtomicU32; 1024]>,
    /// The pending byte of each vCPU's upcall.
    pub pending: Box<[AtomicU8]>,
}

impl Storage {
    /// The page that the nested page tables have behind the register window.
    pub const BEHIND_WINDOW: u64 = BEHIND_WINDOW;
    /// The IOMMU's log.
    pub const LOG: u64 = LOG;

    /// Memory for `vcpus` vCPUs, each with one interrupt-remapping entry.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            pages: (0..vcpus).map(|_| ApicPage::new()).collect(),
            permissions: (0..vcpus).map(|_| MsrPermissions::new()).collect(),
            irtes: (0..vcpus).map(|_| IrteCell::new()).collect(),
            physical: (0..vcpus.div_ceil(512)).map(|_| PhysicalPage::new()).collect(),
            logical: Box::new(LogicalPage::new()),
            log: Box::new(GaLogPage::new()),
            window: Window::new(),
            behind_window: Box::new([const { AtomicU32::new(0) }; 1024]),
            pending: (0..vcpus).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// One slot a vCPU, its x2APIC ID the index.
    #[must_use]
    pub fn slots(&self, config: &Config) -> Vec<Slot<'_, Backing>> {
        let slot = |(index, page)| {
            Slot::new(page, index as u32, config.profile, Backing::new())
                .with_refused_upcall(config.refused_upcall)
        };
        self.pages.iter().enumerate().map(slot).collect()
    }

    /// One route a vCPU, leading nowhere.
    #[must_use]
    pub fn routes(&self) -> Vec<Route<'_>> {
        self.irtes.iter().map(Route::new).collect()
    }

    /// A vCPU's MSR permission map.
    #[must_use]
    pub fn permissions(&self, index: usize) -> &MsrPermissions {
        &self.permissions[index]
    }

    /// The physical address of a vCPU's page.
    #[must_use]
    pub const fn page_address(index: usize) -> u64 {
        PAGES + 0x1000 * index as u64
    }

    pub(crate) const fn permissions_address(index: usize) -> u64 {
        MSR_PERMISSIONS + 0x2000 * index as u64
    }

    pub(super) const fn irte_address(index: usize) -> u64 {
        REMAPPING + 16 * index as u64
    }

    pub(crate) fn show_to<'m>(&'m self, memory: &Memory<'m>) {
        for (index, page) in self.pages.iter().enumerate() {
            memory.add_dwords(Self::page_address(index), page.words());
            let permissions = self.permissions[index].words();
            memory.add_qwords(Self::permissions_address(index), permissions);
            memory.add_qwords(Self::irte_address(index), self.irtes[index].words());
        }
        memory.add_dwords(LOGICAL, self.logical.words());
        memory.add_dwords(BEHIND_WINDOW, self.behind_window.as_slice());
        for (index, page) in self.physical.iter().enumerate() {
            memory.add_qwords(PHYSICAL + 0x1000 * index as u64, page.words());
        }
        memory.add_qwords(LOG, self.log.words());
    }

    /// No store of a guest has gone to the page behind the register window.
    pub(crate) fn window_untouched(&self) -> bool {
        self.behind_window.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}
