//! The memory of a VM and where it lies.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use apicv::{Addresses, MsrBitmap, NotificationVectors, PostedDescriptor, Posting};
use vlapic_core::{ApicPage, Slot};
use vlapic_hal::PhysAddr;

use super::Config;
use crate::model::Memory;

/// The posted-interrupt notification vector of running vCPUs.
pub const NOTIFICATION: u8 = 0xf2;
/// The notification vector of sleeping vCPUs.
pub const WAKEUP: u8 = 0xf1;
/// Makes a CPU leave guest mode.
pub const KICK: u8 = 0xf3;
/// Both notification vectors, as the driver takes them.
pub const VECTORS: NotificationVectors =
    NotificationVectors { running: NOTIFICATION, wakeup: WAKEUP };

const PAGES: u64 = 0x100_0000;
const BITMAPS: u64 = 0x200_0000;
const DESCRIPTORS: u64 = 0x300_0000;
const ACCESS_PAGE: u64 = 0x400_0000;
const PID_POINTERS: u64 = 0x500_0000;

/// What the vCPUs' APICs are made of.
#[derive(Debug)]
pub struct Storage {
    pages: Box<[ApicPage]>,
    access_page: Box<ApicPage>,
    descriptors: Box<[PostedDescriptor]>,
    bitmaps: Box<[MsrBitmap]>,
    pid_pointers: Box<[AtomicU64]>,
    /// The pending byte of each vCPU's upcall.
    pub pending: Box<[AtomicU8]>,
}

impl Storage {
    /// Memory for `vcpus` vCPUs, each entry of the PID-pointer table naming its descriptor.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            pages: (0..vcpus).map(|_| ApicPage::new()).collect(),
            access_page: Box::new(ApicPage::new()),
            descriptors: (0..vcpus).map(|_| PostedDescriptor::new()).collect(),
            bitmaps: (0..vcpus).map(|_| MsrBitmap::new()).collect(),
            pid_pointers: (0..vcpus)
                .map(|index| AtomicU64::new(Self::descriptor_address(index) | 1))
                .collect(),
            pending: (0..vcpus).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// One slot a vCPU, its x2APIC ID the index.
    #[must_use]
    pub fn slots<'m>(&'m self, config: &Config) -> Vec<Slot<'m, Posting<'m>>> {
        let slot = |(index, (page, descriptor))| {
            let posting = Posting::new(descriptor, VECTORS, config.host);
            Slot::new(page, index as u32, config.profile, posting)
                .with_refused_upcall(config.refused_upcall)
        };
        self.pages.iter().zip(&self.descriptors).enumerate().map(slot).collect()
    }

    /// The physical address of a vCPU's page.
    #[must_use]
    pub const fn page_address(index: usize) -> u64 {
        PAGES + 0x1000 * index as u64
    }

    /// The physical address of a vCPU's descriptor: aligned to 64 bytes and no more.
    #[must_use]
    pub const fn descriptor_address(index: usize) -> u64 {
        DESCRIPTORS + 0x40 * (index as u64 + 1)
    }

    /// A vCPU's descriptor.
    #[must_use]
    pub fn descriptor(&self, index: usize) -> &PostedDescriptor {
        &self.descriptors[index]
    }

    /// A vCPU's MSR bitmap.
    #[must_use]
    pub fn bitmap(&self, index: usize) -> &MsrBitmap {
        &self.bitmaps[index]
    }

    pub(crate) fn addresses(&self, index: usize) -> Addresses<'_> {
        let bitmap = PhysAddr::new(BITMAPS + 0x1000 * index as u64);
        let last = self.pid_pointers.len() - 1;
        Addresses {
            virtual_apic: Some(PhysAddr::new(Self::page_address(index))),
            apic_access: Some(PhysAddr::new(ACCESS_PAGE)),
            posted_interrupt_descriptor: Some(PhysAddr::new(Self::descriptor_address(index))),
            msr_bitmap: Some((&self.bitmaps[index], bitmap)),
            pid_pointer_table: Some((PhysAddr::new(PID_POINTERS), last as u16)),
        }
    }

    pub(super) fn show_to<'m>(&'m self, memory: &Memory<'m>) {
        memory.add_dwords(ACCESS_PAGE, self.access_page.words());
        memory.add_qwords(PID_POINTERS, self.pid_pointers.iter());
        for (index, page) in self.pages.iter().enumerate() {
            memory.add_dwords(Self::page_address(index), page.words());
            memory.add_qwords(BITMAPS + 0x1000 * index as u64, self.bitmaps[index].words());
            let descriptor = self.descriptors[index].words();
            memory.add_qwords(Self::descriptor_address(index), descriptor);
        }
    }

    pub(super) fn access_page_untouched(&self) -> bool {
        self.access_page.words().iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}
