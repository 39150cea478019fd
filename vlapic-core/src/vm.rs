//! All vCPUs of a VM: who gets a message.

use crate::base::Mode;
use crate::inbox::{Inbox, Notify};
use crate::message::{Address, Delivery, Destination, Message};
use crate::profile::Vendor;
use crate::slot::{Outcome, Receipt, Slot};
use crate::vector::Vector;

/// The APICs of a VM, over storage that the hypervisor owns.
///
/// A vCPU is named by its index in the slice. Routing holds no copy of anything: every candidate's
/// own page and IA32_APIC_BASE say whether a message is for it.
pub struct Vm<'s, I> {
    slots: &'s [Slot<'s, I>],
}

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
}

impl core::fmt::Display for VmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAscending(index) => write!(f, "x2APIC IDs do not ascend at slot {index}"),
            Self::MixedModels(index) => write!(f, "slot {index} is of another model"),
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
        Ok(Self { slots })
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

    fn highest_id(&self) -> u32 {
        self.slots.last().map_or(0, Slot::x2apic_id)
    }

    /// The vCPU with x2APIC ID `id`.
    #[inline]
    #[must_use]
    pub fn index_of(&self, id: u32) -> Option<usize> {
        // Most VMs number their vCPUs by ID.
        let dense = id as usize;
        if self.slots.get(dense).is_some_and(|slot| slot.x2apic_id() == id) {
            return Some(dense);
        }
        self.slots.binary_search_by_key(&id, Slot::x2apic_id).ok()
    }

    /// Delivers `message`, vCPU by vCPU, as the iterator is driven: each item is a vCPU that was
    /// addressed and what became of the message there. `sender` is the vCPU whose ICR it is;
    /// `None` for devices, I/O APICs and MSIs.
    ///
    /// Lowest priority goes to exactly one of the APICs that accept it: a focus processor if there
    /// is one (AMD), else the one with the lowest PPR (AMD: APR), and among equals the first at or
    /// after index `vector % vcpus`, going round (AMD: the highest ID). SDM Vol. 3A 10.6.2.4; APM
    /// Vol. 2 16.6.2.
    #[inline]
    pub fn send(&self, message: &Message, sender: Option<usize>) -> Deliveries<'s, I> {
        Deliveries {
            targets: Targets::new(*self, message.destination, sender),
            delivery: message.delivery,
        }
    }

    /// The vCPUs that `destination` means, without delivering anything.
    #[must_use]
    pub fn targets(&self, destination: Destination, sender: Option<usize>) -> Targets<'s, I> {
        Targets::new(*self, destination, sender)
    }

    /// For [`Effect::Announce`](crate::Effect::Announce): each vCPU that `destination` means, and how
    /// it is to be told of the vector that hardware has put into its IRR.
    pub fn announce(
        &self,
        destination: Destination,
        sender: Option<usize>,
    ) -> impl Iterator<Item = (usize, Notify)> + use<'s, I> {
        let slots = self.slots;
        self.targets(destination, sender)
            .filter_map(move |index| Some((index, slots.get(index)?.inbox().announce())))
    }

    /// Who of `targets` gets a lowest-priority interrupt.
    fn arbitrate(&self, targets: Targets<'s, I>, vector: u8) -> Option<usize> {
        targets.filter_map(|index| self.rank(index, vector)).min().map(|(_, _, _, index)| index)
    }

    /// Focus, priority class, distance and index of an APIC that accepts: the lowest wins.
    fn rank(&self, index: usize, vector: u8) -> Option<(bool, u8, usize, usize)> {
        let slot = self.slots.get(index).filter(|slot| slot.accepts())?;
        let vcpus = self.slots.len();
        match slot.profile().vendor() {
            Vendor::Intel => {
                // Neither the remainder nor the difference can fail: `index` is below `vcpus`.
                let first = usize::from(vector) % vcpus;
                let distance = (index + vcpus - first) % vcpus;
                Some((true, slot.processor_priority() & 0xF0, distance, index))
            }
            Vendor::Amd => {
                let unfocused = !is_focus(slot, vector);
                Some((unfocused, slot.arbitration_priority() & 0xF0, vcpus - index, index))
            }
        }
    }
}

/// Whether the APIC already has `vector` requested or in service and lets that count (SVR bit 9
/// clear; APM Vol. 2 16.6.2).
fn is_focus<I: Inbox>(slot: &Slot<'_, I>, vector: u8) -> bool {
    let page = slot.page();
    slot.profile().focus_check()
        && !page.svr().focus_check_disabled()
        && Vector::new(vector)
            .is_some_and(|vector| page.irr().contains(vector) || page.isr().contains(vector))
}

/// The vCPUs that a destination means, in ascending order.
pub struct Targets<'s, I> {
    vm: Vm<'s, I>,
    walk: Walk,
    sender: Option<usize>,
}

/// How candidates are found; each is then asked whether the destination means it.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// This vCPU, without asking.
    One(Option<usize>),
    /// Every vCPU from `next` on.
    Every { next: usize, test: Test },
    /// The vCPUs whose IDs equal `next` in their low byte.
    Aliases { next: u32, address: Address },
    /// The vCPUs of one x2APIC cluster: `members` is what is left of the bits 15:0.
    Cluster { base: u32, members: u32, address: Address },
}

#[derive(Clone, Copy, Debug)]
enum Test {
    Present,
    PresentNotSender,
    Physical(Address),
    Logical(Address),
}

impl<'s, I: Inbox> Targets<'s, I> {
    fn none(vm: Vm<'s, I>) -> Self {
        Self { vm, walk: Walk::One(None), sender: None }
    }

    fn new(vm: Vm<'s, I>, destination: Destination, sender: Option<usize>) -> Self {
        let every = |test| Walk::Every { next: 0, test };
        let walk = match destination {
            Destination::SelfOnly => Walk::One(sender),
            Destination::All => every(Test::Present),
            Destination::AllButSelf => every(Test::PresentNotSender),
            Destination::Physical(address) => {
                // `Vm::new` has made sure that the first APIC speaks for all.
                let rewritable =
                    vm.slots.first().is_some_and(|slot| slot.profile().xapic_id_writable());
                // With sparse IDs the walk over aliases would be longer than that over all.
                let sparse = vm.highest_id() >> 8 > vm.slots.len() as u32;
                if rewritable || sparse || address.broadcast() {
                    every(Test::Physical(address))
                } else {
                    Walk::Aliases { next: address.id() & 0xFF, address }
                }
            }
            // Above 20 bits, IDs have the LDR of another ID.
            Destination::Logical(address @ Address::Wide(id))
                if id > 0xFF && !address.broadcast() && vm.highest_id() <= 0xF_FFFF =>
            {
                Walk::Cluster { base: id >> 16 << 4, members: id & 0xFFFF, address }
            }
            Destination::Logical(address) => every(Test::Logical(address)),
        };
        Self { vm, walk, sender }
    }
}

impl<I> Clone for Targets<'_, I> {
    fn clone(&self) -> Self {
        Self { vm: self.vm, walk: self.walk, sender: self.sender }
    }
}

impl<I> core::fmt::Debug for Targets<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Targets").field("walk", &self.walk).finish_non_exhaustive()
    }
}

impl<I: Inbox> Iterator for Targets<'_, I> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slots = self.vm.slots;
        match &mut self.walk {
            Walk::One(index) => index.take().filter(|&index| index < slots.len()),
            Walk::Every { next, test } => {
                while let Some(slot) = slots.get(*next) {
                    let index = *next;
                    *next += 1;
                    let meant = match *test {
                        Test::Present => slot.mode() != Mode::Disabled,
                        Test::PresentNotSender => {
                            slot.mode() != Mode::Disabled && Some(index) != self.sender
                        }
                        Test::Physical(address) => slot.matches_physical(address),
                        Test::Logical(address) => slot.matches_logical(address),
                    };
                    if meant {
                        return Some(index);
                    }
                }
                None
            }
            Walk::Aliases { next, address } => {
                let last = self.vm.highest_id();
                while *next <= last {
                    let candidate = self.vm.index_of(*next);
                    // The highest ID is below 256 * (vCPUs + 1), so this is far from overflow.
                    *next = next.saturating_add(0x100);
                    if let Some(index) = candidate
                        && slots.get(index)?.matches_physical(*address)
                    {
                        return Some(index);
                    }
                }
                None
            }
            Walk::Cluster { base, members, address } => {
                while *members != 0 {
                    let id = *base + members.trailing_zeros();
                    *members &= *members - 1;
                    if let Some(index) = self.vm.index_of(id)
                        && slots.get(index)?.matches_logical(*address)
                    {
                        return Some(index);
                    }
                }
                None
            }
        }
    }
}

/// A message on its way: see [`Vm::send`]. What is not driven is not delivered.
#[must_use = "delivery happens as the iterator is driven"]
pub struct Deliveries<'s, I> {
    targets: Targets<'s, I>,
    delivery: Delivery,
}

impl<I: Inbox> Iterator for Deliveries<'_, I> {
    type Item = (usize, Receipt);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Delivery::LowestPriority { vector, .. } = self.delivery {
            return self.deliver_to_lowest(vector);
        }
        let index = self.targets.next()?;
        let slot = self.targets.vm.slots.get(index)?;
        Some((index, slot.receive(self.delivery)))
    }
}

impl<I: Inbox> Deliveries<'_, I> {
    /// To one target, and then to none. If the winner refuses, because its guest has disabled its
    /// APIC since, the others are asked again, as often as there are vCPUs.
    fn deliver_to_lowest(&mut self, vector: u8) -> Option<(usize, Receipt)> {
        let vm = self.targets.vm;
        let targets = core::mem::replace(&mut self.targets, Targets::none(vm));
        let mut refused = None;
        for _ in 0..vm.slots.len() {
            let Some(index) = vm.arbitrate(targets.clone(), vector) else {
                break;
            };
            let receipt = vm.slots.get(index)?.receive(self.delivery);
            if receipt.outcome != Outcome::Refused {
                return Some((index, receipt));
            }
            refused = Some((index, receipt));
        }
        refused
    }
}

impl<I> core::fmt::Debug for Deliveries<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Deliveries").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApicPage, DirectInbox, Profile};

    fn walk(ids: [u32; 3], destination: Destination) -> Walk {
        let page = ApicPage::new();
        let slots = ids.map(|id| Slot::new(&page, id, Profile::intel(), DirectInbox));
        let vm = Vm::new(&slots).unwrap();
        Targets::new(vm, destination, None).walk
    }

    #[test]
    fn no_guest_can_ask_for_a_long_walk() {
        let physical = Destination::Physical(Address::Wide(5));
        let logical = Destination::Logical(Address::Wide(0xF_0001));
        assert!(matches!(walk([0, 1, 2], physical), Walk::Aliases { .. }));
        assert!(matches!(walk([0, 1, 0xFFFF_FF00], physical), Walk::Every { .. }));
        assert!(matches!(walk([0, 1, 2], logical), Walk::Cluster { .. }));
        assert!(matches!(walk([0, 1, 0x10_0000], logical), Walk::Every { .. }));
    }
}
