//! All vCPUs of a VM: who gets a message.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::directory::Directory;
use crate::inbox::{Inbox, Notify};
use crate::message::{Destination, Message};
use crate::slot::Slot;
use crate::targets::{Announcements, Deliveries, Targets};

/// The APICs of a VM, over storage that the hypervisor owns.
///
/// A vCPU is named by its index in the slice. Routing holds no copy of anything: every candidate's
/// own page and IA32_APIC_BASE say whether a message is for it. A [`Directory`] says whom to ask.
pub struct Vm<'s, I> {
    slots: &'s [Slot<'s, I>],
    highest_id: u32,
    /// The APIC with ID n is vCPU n.
    dense: bool,
    /// Guests may change their xAPIC IDs.
    rewritable: bool,
    /// IDs below this are indices.
    direct: u32,
    /// Bits 31:0 are zero as long as every APIC in xAPIC mode has the ID it was made with, below 100.
    renamed: &'s AtomicU64,
    directory: Option<&'s Directory>,
}

/// What a VM knows of its APICs' IDs where it needs no directory to know, and where it has none.
static NOBODY: AtomicU64 = AtomicU64::new(0);
static SOMEBODY: AtomicU64 = AtomicU64::new(1);

/// Why a slice of slots is not a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmError {
    /// The slot at this index does not have a higher x2APIC ID than the one before.
    NotAscending(usize),
    /// More than 4096 slots.
    TooMany,
    /// The slot at this index differs from the first in vendor, or in whether its xAPIC ID can be
    /// rewritten: routing takes all APICs of a VM to be of one model.
    MixedModels(usize),
    /// The slot at this index was not made with the directory of the first.
    OtherDirectory(usize),
}

impl core::fmt::Display for VmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAscending(index) => write!(f, "x2APIC IDs do not ascend at slot {index}"),
            Self::MixedModels(index) => write!(f, "slot {index} is of another model"),
            Self::OtherDirectory(index) => write!(f, "slot {index} has another directory"),
            Self::TooMany => write!(f, "more than {} vCPUs", Vm::<()>::MAX_VCPUS),
        }
    }
}

impl core::error::Error for VmError {}

impl<I> Vm<'_, I> {
    /// The most vCPUs a VM may have.
    pub const MAX_VCPUS: usize = 4096;
}

impl<'s, I> Clone for Vm<'s, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Vm<'_, I> {}

impl<I> core::fmt::Debug for Vm<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vm").field("vcpus", &self.slots.len()).finish()
    }
}

impl<'s, I: Inbox> Vm<'s, I> {
    /// The VM made of `slots`, which stand in ascending order of x2APIC ID.
    ///
    /// # Errors
    /// [`VmError`] if they do not, or are too many.
    pub fn new(slots: &'s [Slot<'s, I>]) -> Result<Self, VmError> {
        if slots.len() > Vm::<()>::MAX_VCPUS {
            return Err(VmError::TooMany);
        }
        for (index, pair) in slots.windows(2).enumerate() {
            let [before, after] = pair else {
                continue;
            };
            if after.x2apic_id() <= before.x2apic_id() {
                return Err(VmError::NotAscending(index + 1));
            }
            if !before.profile().routes_as(after.profile()) {
                return Err(VmError::MixedModels(index + 1));
            }
        }
        let highest_id = slots.last().map_or(0, Slot::x2apic_id);
        let dense = highest_id as usize + 1 == slots.len();
        let rewritable = slots.first().is_some_and(|slot| slot.profile().xapic_id_writable());
        let direct = if dense { slots.len() as u32 } else { 0 };
        let directory = slots.first().and_then(Slot::directory);
        let other = |slot: &Slot<'s, I>| match (slot.directory(), directory) {
            (Some(one), Some(other)) => !core::ptr::eq(one, other),
            (one, other) => one.is_some() != other.is_some(),
        };
        if let Some(index) = slots.iter().position(other) {
            return Err(VmError::OtherDirectory(index));
        }
        let renamed = match directory {
            _ if !rewritable && highest_id <= 0xFF => &NOBODY,
            Some(directory) => directory.unlisted(),
            None => &SOMEBODY,
        };
        Ok(Self { slots, highest_id, dense, rewritable, direct, renamed, directory })
    }

    /// The slots, by vCPU index.
    #[must_use]
    pub const fn slots(&self) -> &'s [Slot<'s, I>] {
        self.slots
    }

    /// The slot of vCPU `index`.
    #[inline]
    #[must_use]
    pub fn slot(&self, index: usize) -> Option<&'s Slot<'s, I>> {
        self.slots.get(index)
    }

    pub(crate) const fn highest_id(&self) -> u32 {
        self.highest_id
    }

    /// The index that a fixed interrupt to a physical ID is for, if there can be but one, that is
    /// easily told.
    #[inline(always)]
    pub(crate) fn only(&self, to: Message) -> Option<usize> {
        let id = to.id();
        let known = to.is_fixed_to_physical() && id < self.direct && self.keep_their_ids();
        // From FF on it may be a broadcast, or mean APICs by its low byte.
        let only = known && (id < 0xFF || !to.is_broadcast() && !self.has_alias(id));
        only.then_some(id as usize)
    }

    /// IDs are indices.
    #[inline]
    pub(crate) const fn dense(&self) -> bool {
        self.dense
    }

    pub(crate) const fn rewritable(&self) -> bool {
        self.rewritable
    }

    pub(crate) const fn directory(&self) -> Option<&'s Directory> {
        self.directory
    }

    /// The vCPU with x2APIC ID `id`.
    #[inline]
    #[must_use]
    pub fn index_of(&self, id: u32) -> Option<usize> {
        if self.dense {
            return Some(id as usize).filter(|&index| index < self.slots.len());
        }
        self.search(id)
    }

    /// Whether the physical destination `id` may mean APICs besides that with this x2APIC ID.
    pub(crate) fn may_have_aliases(&self, id: u32) -> bool {
        !self.keep_their_ids() || self.has_alias(id)
    }

    /// Whether every APIC in xAPIC mode has the ID it was made with, below 100.
    #[inline(always)]
    fn keep_their_ids(&self) -> bool {
        self.renamed.load(Ordering::Acquire) as u32 == 0
    }

    /// If so: whether `id` means another APIC by its low byte, which is what an APIC compares in xAPIC
    /// mode.
    #[inline]
    fn has_alias(&self, id: u32) -> bool {
        let low = id & 0xFF;
        id != low && self.with_id(low).is_some_and(|slot| slot.has_id(id))
    }

    /// The slot of the vCPU with x2APIC ID `id`.
    #[inline]
    fn with_id(&self, id: u32) -> Option<&'s Slot<'s, I>> {
        self.slot(self.index_of(id)?)
    }

    #[inline(never)]
    fn search(&self, id: u32) -> Option<usize> {
        self.slots.binary_search_by_key(&id, Slot::x2apic_id).ok()
    }

    /// Delivers `message`, vCPU by vCPU, as the iterator is driven: each item is a vCPU that was
    /// addressed and what became of the message there. `for_each` drives it fastest. `sender` is the
    /// vCPU whose ICR it is; `None` for devices, I/O APICs and MSIs.
    ///
    /// Lowest priority goes to exactly one of the APICs that accept it: a focus processor if there
    /// is one (AMD), else the one with the lowest PPR (AMD: APR), and among equals the first at or
    /// after index `vector % vcpus`, going round (AMD: the highest ID). SDM Vol. 3A 10.6.2.4; APM
    /// Vol. 2 16.6.2.
    #[inline]
    pub fn send(&self, message: &Message, sender: Option<usize>) -> Deliveries<'_, I> {
        Deliveries::new(self, *message, sender)
    }

    /// The vCPUs that `destination` means, without delivering anything.
    #[must_use]
    pub fn targets(&self, destination: Destination, sender: Option<usize>) -> Targets<'_, I> {
        Targets::new(self, Message::to(destination), sender)
    }

    /// For [`Effect::Announce`](crate::Effect::Announce): each vCPU that `destination` means, and how
    /// it is to be told of the vector that hardware has put into its IRR. `for_each` drives the iterator
    /// fastest.
    #[inline]
    pub fn announce(
        &self,
        destination: Destination,
        sender: Option<usize>,
    ) -> impl Iterator<Item = (usize, Notify)> + use<'_, 's, I> {
        Announcements(Targets::new(self, Message::to(destination), sender))
    }
}
