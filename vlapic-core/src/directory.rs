//! Who is to be asked about a destination: a hint for routing.
//!
//! Without it, a logical destination in xAPIC mode, and any physical one in a VM with IDs above
//! FF, is put to every vCPU that it might mean. With it only to those that it does mean, and to
//! a few more while somebody's addressing changes. Each is still asked by its own page and
//! IA32_APIC_BASE: an entry too many costs time, and what would be an entry too few is told apart.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::base::Mode;
use crate::inbox::Inbox;
use crate::register::Register;
use crate::slot::Slot;

/// One VM's directory of logical xAPIC addresses. The storage, a little more than 2 KiB, is the
/// hypervisor's: make one for each VM, and every slot of the VM with it
/// ([`Slot::with_directory`]).
///
/// It lists what the pages said when their owners last looked: after each write to ID, LDR, DFR and
/// IA32_APIC_BASE, at RESET and INIT, and before every entry
/// ([`LocalApic::prepare`](crate::LocalApic::prepare)). So whatever a guest's processor does after
/// such a write finds it listed. An APIC whose guest may store to its page unseen is not listed
/// while it is in xAPIC mode; nor is one with an ID above FF, or a rewritten ID, in that mode. As
/// long as there is one such, routing asks every vCPU.
///
/// Ordering: whoever changes the lists counts itself as not listed, changes them by locked
/// operations, then takes the count back with a release, if it can. A sender loads the count
/// with an acquire, the lists, and the count again: if it was not zero, or there was a change
/// meanwhile, it asks everybody.
#[derive(Debug)]
pub struct Directory {
    /// Of each bit of the flat model the IDs below 100 that have it.
    flat: [Members; 8],
    /// The same of the 16 clusters of 4 bits.
    clusters: [Members; 64],
    /// How many are not listed, in bits 31:0; how many changes there were, in bits 63:32.
    state: AtomicU64,
}

/// IDs below 100, one bit each.
type Members = [AtomicU64; 4];

/// The state changes by this much when somebody begins to change the lists.
const CHANGE: u64 = 1 << 32 | 1;

/// IDs below 100, one bit each.
pub(crate) type Ids = [u64; 4];

impl Directory {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            flat: [const { [const { AtomicU64::new(0) }; 4] }; 8],
            clusters: [const { [const { AtomicU64::new(0) }; 4] }; 64],
            state: AtomicU64::new(0),
        }
    }

    /// Bits 31:0 are zero as long as everybody in xAPIC mode is listed, and so has the ID it was made
    /// with, below 100. To be loaded with an acquire.
    #[inline]
    pub(crate) const fn unlisted(&self) -> &AtomicU64 {
        &self.state
    }

    /// Who may have logical address `id` of at most FF, no broadcast, in either mode; `None` if that
    /// is not known.
    #[inline]
    pub(crate) fn listed(&self, id: u32) -> Option<Ids> {
        let state = self.state.load(Ordering::Acquire);
        if state as u32 != 0 {
            return None;
        }
        // In x2APIC mode: cluster 0, in which the bits are the IDs.
        let mut ids = [u64::from(id & 0xFF), 0, 0, 0];
        let mut add = |members: &Members| {
            for (ids, members) in ids.iter_mut().zip(members) {
                // Acquire: who sees a change of the list sees the count of changes.
                *ids |= members.load(Ordering::Acquire);
            }
        };
        Bits(id & 0xFF).for_each(|bit| add(self.flat(bit)));
        Bits(id & 0xF).for_each(|bit| add(self.cluster(id >> 4, bit)));
        (self.state.load(Ordering::Relaxed) == state).then_some(ids)
    }

    /// Owner: changes what is listed of `id`.
    #[cold]
    fn change(&self, id: u32, from: Listing, to: Listing) {
        if from != Listing::UNLISTED {
            self.state.fetch_add(CHANGE, Ordering::SeqCst);
        }
        let word = (id >> 6) as usize & 3;
        let bit = 1u64 << (id & 63);
        to.places(self).for_each(|place| {
            place[word].fetch_or(bit, Ordering::SeqCst);
        });
        let still = |place| to.places(self).any(|new| core::ptr::eq(new, place));
        from.places(self).filter(|&place| !still(place)).for_each(|place| {
            place[word].fetch_and(!bit, Ordering::SeqCst);
        });
        if to != Listing::UNLISTED {
            self.state.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Those who have bit `bit` in the flat model. The masks leave no check to the compiler.
    #[inline]
    fn flat(&self, bit: u8) -> &Members {
        &self.flat[usize::from(bit) & 7]
    }

    /// Those who have bit `bit` of cluster `cluster`.
    #[inline]
    fn cluster(&self, cluster: u32, bit: u8) -> &Members {
        &self.clusters[(cluster as usize * 4 + usize::from(bit)) & 63]
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

/// What is listed of one vCPU: bits 9:8 the model, bits 7:0 the logical ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listing(u32);

impl Listing {
    /// No logical xAPIC address.
    const NONE: Self = Self(0);
    const FLAT: u32 = 0x100;
    const CLUSTER: u32 = 0x200;
    /// Has to be asked.
    const UNLISTED: Self = Self(0x300);

    /// What the page and IA32_APIC_BASE say now.
    #[inline]
    fn of<I: Inbox>(slot: &Slot<'_, I>, unseen: bool) -> Self {
        if slot.mode() != Mode::XApic {
            return Self::NONE;
        }
        let (page, id) = (slot.page(), slot.x2apic_id());
        let renamed = slot.profile().xapic_id_writable() && page.read(Register::Id) >> 24 != id;
        if unseen || renamed || id > 0xFF {
            return Self::UNLISTED;
        }
        let logical_id = page.read(Register::Ldr) >> 24;
        match page.read(Register::Dfr) >> 28 {
            _ if logical_id == 0 => Self::NONE,
            0xF => Self(Self::FLAT | logical_id),
            0x0 => Self(Self::CLUSTER | logical_id),
            _ => Self::NONE,
        }
    }

    /// Where an APIC with this listing stands.
    fn places(self, directory: &Directory) -> impl Iterator<Item = &Members> {
        let model = self.0 & Self::UNLISTED.0;
        let flat = if model == Self::FLAT { self.0 & 0xFF } else { 0 };
        let cluster = if model == Self::CLUSTER { self.0 & 0xF } else { 0 };
        let number = self.0 >> 4 & 0xF;
        let in_cluster = Bits(cluster).map(move |bit| directory.cluster(number, bit));
        Bits(flat).map(|bit| directory.flat(bit)).chain(in_cluster)
    }
}

/// The numbers of the bits that are set.
struct Bits(u32);

impl Iterator for Bits {
    type Item = u8;

    #[inline]
    fn next(&mut self) -> Option<u8> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit as u8)
    }
}

/// A slot's place in its VM's directory.
#[derive(Debug)]
pub(crate) struct Listed<'p> {
    directory: Option<&'p Directory>,
    /// What the directory was last told; the owner's.
    listing: AtomicU32,
}

impl<'p> Listed<'p> {
    pub(crate) const fn nowhere() -> Self {
        Self { directory: None, listing: AtomicU32::new(0) }
    }
}

impl<'p, I: Inbox> Slot<'p, I> {
    /// The slot as one of a VM that has `directory`.
    #[must_use]
    pub fn with_directory(mut self, directory: &'p Directory) -> Self {
        self.listed = Listed { directory: Some(directory), ..Listed::nowhere() };
        self.list(false);
        self
    }

    /// The directory that the slot was made with.
    #[inline]
    #[must_use]
    pub const fn directory(&self) -> Option<&'p Directory> {
        self.listed.directory
    }

    /// Owner: whether [`list`](Self::list) has nothing to do.
    #[inline]
    pub(crate) fn is_listed(&self, unseen: bool) -> bool {
        self.listed.directory.is_none()
            || self.listed.listing.load(Ordering::Relaxed) == Listing::of(self, unseen).0
    }

    /// Owner: has the directory follow the page. Two or three loads if there is no change. `unseen`
    /// says that the guest may store to its page with nobody told.
    #[inline]
    pub(crate) fn list(&self, unseen: bool) {
        let Some(directory) = self.listed.directory else {
            return;
        };
        let from = Listing(self.listed.listing.load(Ordering::Relaxed));
        let to = Listing::of(self, unseen);
        if from != to {
            self.listed.listing.store(to.0, Ordering::Relaxed);
            directory.change(self.x2apic_id(), from, to);
        }
    }
}

#[cfg(test)]
mod tests;
