//! Who is meant by a destination, and the delivery to each.

use crate::directory::Ids;
use crate::inbox::Inbox;
use crate::message::{Address, Delivery, Destination};
use crate::slot::{Outcome, Receipt};
use crate::vm::Vm;

/// The vCPUs that a destination means, in ascending order.
///
/// One vCPU, or all of them, is a range of indices; everything else is a walk that finds one index
/// after the other. The walk goes by value between here and the code that moves it on: as nobody has
/// its address, the usual cases live in registers.
pub struct Targets<'s, I> {
    vm: Vm<'s, I>,
    /// Indices, each of which is meant if its APIC is present and it is not `except`.
    next: usize,
    end: usize,
    except: usize,
    walk: Walk,
}

/// No index.
const NONE: usize = usize::MAX;

/// How further candidates are found. Each is then asked whether the destination means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// There are none.
    Nobody,
    /// Every vCPU from `next` on.
    Every { next: usize, test: Test },
    /// This vCPU, without asking.
    One { index: usize },
    /// The vCPUs whose IDs equal `next` in their low byte.
    Aliases { next: u32, address: Address },
    /// The vCPUs of one x2APIC cluster: `members` is what is left of the bits 15:0.
    Cluster { base: u32, members: u32, address: Address },
    /// The vCPUs with these IDs.
    Listed { ids: Ids, address: Address },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Physical(Address),
    Logical(Address),
}

impl<'s, I: Inbox> Targets<'s, I> {
    #[inline(always)]
    pub(crate) fn new(vm: Vm<'s, I>, destination: Destination, sender: Option<usize>) -> Self {
        match destination {
            Destination::Physical(address) if !address.broadcast() => Self::physical(vm, address),
            Destination::Logical(address) if !address.broadcast() => {
                Self { walk: logical(vm, address), ..Self::one(vm, None) }
            }
            Destination::SelfOnly => {
                let known = sender.filter(|&index| index < vm.slots().len());
                let walk = known.map_or(Walk::Nobody, |index| Walk::One { index });
                Self { walk, ..Self::one(vm, None) }
            }
            Destination::AllButSelf => Self::present(vm, sender.unwrap_or(NONE)),
            _ => Self::present(vm, NONE),
        }
    }

    /// Everybody who is present.
    #[inline]
    fn present(vm: Vm<'s, I>, except: usize) -> Self {
        Self { vm, next: 0, end: vm.slots().len(), except, walk: Walk::Nobody }
    }

    /// This one, or nobody.
    #[inline]
    fn one(vm: Vm<'s, I>, index: Option<usize>) -> Self {
        let next = index.unwrap_or(0);
        let end = if index.is_some() { next.saturating_add(1) } else { 0 };
        Self { vm, next, end, except: NONE, walk: Walk::Nobody }
    }

    /// In xAPIC mode an APIC compares the low byte, in x2APIC mode everything.
    #[inline(always)]
    fn physical(vm: Vm<'s, I>, address: Address) -> Self {
        let id = address.id();
        let fixed = !vm.rewritable() && vm.highest_id() <= 0xFF;
        if !fixed && !vm.directory().is_some_and(|directory| directory.is_complete()) {
            return Self { walk: aliases(vm, address), ..Self::one(vm, None) };
        }
        let meant = |id| {
            let index = vm.index_of(id)?;
            vm.slot(index).filter(|slot| slot.matches_physical(address)).map(|_| index)
        };
        let low = Self::one(vm, meant(id & 0xFF));
        match if id > 0xFF { meant(id) } else { None } {
            Some(index) => Self { walk: Walk::One { index }, ..low },
            None => low,
        }
    }
}

#[cold]
fn aliases<I: Inbox>(vm: Vm<'_, I>, address: Address) -> Walk {
    // With sparse IDs the walk over aliases would be longer than that over all.
    let sparse = vm.highest_id() >> 8 > vm.slots().len() as u32;
    if vm.rewritable() || sparse {
        Walk::Every { next: 0, test: Test::Physical(address) }
    } else {
        Walk::Aliases { next: address.id() & 0xFF, address }
    }
}

#[inline(never)]
fn logical<I: Inbox>(vm: Vm<'_, I>, address: Address) -> Walk {
    let id = address.id();
    // Above 20 bits, IDs have the LDR of another ID.
    if vm.highest_id() <= 0xF_FFFF {
        if id > 0xFF {
            return Walk::Cluster { base: id >> 16 << 4, members: id & 0xFFFF, address };
        }
        if let Some(ids) = vm.directory().and_then(|directory| directory.listed(address)) {
            return Walk::Listed { ids, address };
        }
    }
    Walk::Every { next: 0, test: Test::Logical(address) }
}

impl Walk {
    /// The next index, and how to go on.
    #[inline(never)]
    fn step<I: Inbox>(mut self, vm: Vm<'_, I>) -> Option<(usize, Self)> {
        let index = self.advance(vm)?;
        Some((index, self))
    }

    fn advance<I: Inbox>(&mut self, vm: Vm<'_, I>) -> Option<usize> {
        let slots = vm.slots();
        let logical = |id, address| {
            let index = vm.index_of(id)?;
            slots.get(index).filter(|slot| slot.matches_logical(address)).map(|_| index)
        };
        match self {
            Self::Nobody => None,
            Self::One { index } => {
                let index = *index;
                *self = Self::Nobody;
                Some(index)
            }
            Self::Every { next, test } => {
                while let Some(slot) = slots.get(*next) {
                    let index = *next;
                    *next += 1;
                    let meant = match *test {
                        Test::Physical(address) => slot.matches_physical(address),
                        Test::Logical(address) => slot.matches_logical(address),
                    };
                    if meant {
                        return Some(index);
                    }
                }
                None
            }
            Self::Aliases { next, address } => {
                while *next <= vm.highest_id() {
                    let candidate = vm.index_of(*next);
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
            Self::Cluster { base, members, address } => {
                while *members != 0 {
                    let id = *base + members.trailing_zeros();
                    *members &= *members - 1;
                    if let Some(index) = logical(id, *address) {
                        return Some(index);
                    }
                }
                None
            }
            Self::Listed { ids, address } => {
                while let Some(id) = take_lowest(ids) {
                    if let Some(index) = logical(id, *address) {
                        return Some(index);
                    }
                }
                None
            }
        }
    }
}

#[inline]
fn take_lowest(ids: &mut Ids) -> Option<u32> {
    let mut first = 0;
    for word in ids {
        if *word != 0 {
            let bit = word.trailing_zeros();
            *word &= *word - 1;
            return Some(first + bit);
        }
        first += 64;
    }
    None
}

impl<I> Clone for Targets<'_, I> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<I> core::fmt::Debug for Targets<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Targets")
            .field("range", &(self.next..self.end))
            .field("walk", &self.walk)
            .finish_non_exhaustive()
    }
}

impl<I: Inbox> Iterator for Targets<'_, I> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.next < self.end {
            let index = self.next;
            self.next += 1;
            if index != self.except && self.vm.slot(index)?.present() {
                return Some(index);
            }
        }
        if self.walk == Walk::Nobody {
            return None;
        }
        let (index, walk) = self.walk.step(self.vm)?;
        self.walk = walk;
        Some(index)
    }
}

/// A message on its way: see [`Vm::send`]. What is not driven is not delivered.
#[must_use = "delivery happens as the iterator is driven"]
pub struct Deliveries<'s, I> {
    targets: Targets<'s, I>,
    delivery: Delivery,
}

impl<'s, I> Deliveries<'s, I> {
    #[inline]
    pub(crate) const fn new(targets: Targets<'s, I>, delivery: Delivery) -> Self {
        Self { targets, delivery }
    }
}

impl<I: Inbox> Iterator for Deliveries<'_, I> {
    type Item = (usize, Receipt);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Delivery::LowestPriority { vector, .. } = self.delivery {
            let targets = self.targets.clone();
            self.targets = Targets::one(targets.vm, None);
            return to_lowest(targets, self.delivery, vector);
        }
        let index = self.targets.next()?;
        let slot = self.targets.vm.slot(index)?;
        Some((index, slot.receive(self.delivery)))
    }
}

/// Delivers to one of `targets`. If the winner refuses, because its guest has disabled its APIC
/// since, the others are asked again, as often as there are vCPUs.
#[inline(never)]
fn to_lowest<I: Inbox>(
    targets: Targets<'_, I>,
    delivery: Delivery,
    vector: u8,
) -> Option<(usize, Receipt)> {
    let vm = targets.vm;
    let mut refused = None;
    for _ in 0..vm.slots().len() {
        let Some(index) = vm.arbitrate(targets.clone(), vector) else {
            break;
        };
        let receipt = vm.slot(index)?.receive(delivery);
        if receipt.outcome != Outcome::Refused {
            return Some((index, receipt));
        }
        refused = Some((index, receipt));
    }
    refused
}

impl<I> core::fmt::Debug for Deliveries<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Deliveries").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApicPage, DirectInbox, Directory, Profile, Slot};

    fn walk(ids: [u32; 3], directory: Option<&Directory>, destination: Destination) -> Walk {
        let page = ApicPage::new();
        let slots = ids.map(|id| {
            let slot = Slot::new(&page, id, Profile::intel(), DirectInbox);
            match directory {
                Some(directory) => slot.with_directory(directory),
                None => slot,
            }
        });
        let vm = Vm::new(&slots).unwrap();
        Targets::new(vm, destination, None).walk
    }

    #[test]
    fn no_guest_can_ask_for_a_long_walk() {
        let physical = Destination::Physical(Address::Wide(5));
        let logical = Destination::Logical(Address::Wide(0xF_0001));
        let walk = |ids, destination| walk(ids, None, destination);
        assert_eq!(walk([0, 1, 5], physical), Walk::Nobody);
        assert!(matches!(walk([0, 1, 0x105], physical), Walk::Aliases { .. }));
        assert!(matches!(walk([0, 1, 0xFFFF_FF00], physical), Walk::Every { .. }));
        assert!(matches!(walk([0, 1, 2], logical), Walk::Cluster { .. }));
        assert!(matches!(walk([0, 1, 0x10_0000], logical), Walk::Every { .. }));
    }

    #[test]
    fn a_directory_names_the_few() {
        let logical = Destination::Logical(Address::Narrow(3));
        assert!(matches!(walk([0, 1, 2], None, logical), Walk::Every { .. }));
        let directory = Directory::new();
        assert!(matches!(walk([0, 1, 2], Some(&directory), logical), Walk::Listed { .. }));
        // In xAPIC mode an APIC above FF is found by the low byte of its ID.
        let physical = Destination::Physical(Address::Wide(5));
        let directory = Directory::new();
        assert!(matches!(walk([0, 1, 0x105], Some(&directory), physical), Walk::Aliases { .. }));
    }
}
