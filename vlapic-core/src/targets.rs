//! Who is meant by a destination, and the delivery to each.

use crate::arbitration;
use crate::base::ApicBase;
use crate::inbox::{Inbox, Notify};
use crate::message::Message;
use crate::slot::{Outcome, Receipt, Slot};
use crate::vm::Vm;
use crate::window::{NONE, WIDTH, Window, logical_ids, take_lowest};

/// The vCPUs that a destination means, in ascending order.
///
/// `for_each` and what else drives the iterator from inside is faster than a loop around it.
pub struct Targets<'v, I> {
    vm: &'v Vm<'v, I>,
    to: Message,
    sender: usize,
    /// Where it has got to; `None` before the first step.
    window: Option<Window>,
}

impl<'v, I: Inbox> Targets<'v, I> {
    /// Those whom `to` is addressed to, whatever it delivers.
    #[inline(always)]
    pub(crate) fn new(vm: &'v Vm<'v, I>, to: Message, sender: Option<usize>) -> Self {
        Self { vm, to, sender: sender.unwrap_or(NONE), window: None }
    }

    fn next_slot(&mut self) -> Option<(usize, &'v Slot<'v, I>)> {
        let first = || Window::first(self.vm, self.to, self.sender);
        self.window.get_or_insert_with(first).pull(self.vm, self.to)
    }

    #[inline(always)]
    pub(crate) fn fold_slots<B>(self, init: B, f: impl FnMut(B, usize, &'v Slot<'v, I>) -> B) -> B {
        let Self { vm, to, sender, window } = self;
        let window = match window {
            Some(window) => window,
            None => Window::first(vm, to, sender),
        };
        window.fold(vm, to, init, f)
    }
}

impl<I> Clone for Targets<'_, I> {
    #[inline]
    fn clone(&self) -> Self {
        Self { window: self.window.clone(), ..*self }
    }
}

impl<I> core::fmt::Debug for Targets<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Targets")
            .field("to", &self.to.destination())
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl<I: Inbox> Iterator for Targets<'_, I> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.next_slot().map(|(index, _)| index)
    }

    #[inline]
    fn fold<B, F: FnMut(B, Self::Item) -> B>(self, init: B, mut f: F) -> B {
        self.fold_slots(init, |result, index, _| f(result, index))
    }
}

/// Those to whom hardware has sent a fixed interrupt, and how each is to be told of it: see
/// [`Vm::announce`].
pub(crate) struct Announcements<'v, I>(pub(crate) Targets<'v, I>);

impl<I: Inbox> Iterator for Announcements<'_, I> {
    type Item = (usize, Notify);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_slot().map(|(index, slot)| (index, slot.inbox().announce()))
    }

    #[inline(always)]
    fn fold<B, F: FnMut(B, Self::Item) -> B>(self, init: B, mut f: F) -> B {
        let Targets { vm, to, ref window, .. } = self.0;
        let only = if window.is_none() { vm.only(to) } else { None };
        let Some(index) = only else {
            return announce_to_many(self, init, f);
        };
        match vm.slot(index) {
            Some(slot) if slot.has_id(to.id()) => f(init, (index, slot.inbox().announce())),
            _ => init,
        }
    }
}

/// What may not be for a single vCPU.
#[inline(never)]
fn announce_to_many<I: Inbox, B>(
    announcements: Announcements<'_, I>,
    init: B,
    mut f: impl FnMut(B, (usize, Notify)) -> B,
) -> B {
    announcements
        .0
        .fold_slots(init, |result, index, slot| f(result, (index, slot.inbox().announce())))
}

/// A message on its way: see [`Vm::send`]. What is not driven is not delivered.
///
/// `for_each` and what else drives the iterator from inside is faster than a loop around it.
#[must_use = "delivery happens as the iterator is driven"]
pub struct Deliveries<'v, I>(Targets<'v, I>);

impl<'v, I: Inbox> Deliveries<'v, I> {
    #[inline(always)]
    pub(crate) fn new(vm: &'v Vm<'v, I>, message: Message, sender: Option<usize>) -> Self {
        Self(Targets::new(vm, message, sender))
    }

    /// Delivers to one of the targets. If the winner refuses, because its guest has disabled its APIC
    /// since, the others are asked again, as often as there are vCPUs.
    #[cold]
    #[inline(never)]
    fn next_lowest(&mut self) -> Option<(usize, Receipt)> {
        let (vm, message) = (self.0.vm, self.0.to);
        if self.0.window.replace(Window::NONE).is_some() {
            return None;
        }
        let mut refused = None;
        for _ in 0..vm.slots().len() {
            let targets = Targets { window: None, ..self.0 };
            let Some(index) = arbitration::winner(vm, targets, message.vector()) else {
                break;
            };
            let receipt = vm.slot(index)?.receive_message(message);
            if receipt.outcome != Outcome::Refused {
                return Some((index, receipt));
            }
            refused = Some((index, receipt));
        }
        refused
    }
}

/// What is not for a single vCPU.
#[inline(never)]
fn to_many<I: Inbox, B>(
    vm: &Vm<'_, I>,
    to: Message,
    sender: usize,
    init: B,
    f: impl FnMut(B, (usize, Receipt)) -> B,
) -> B {
    if to.is_fixed_to_all() {
        let except = if to.is_to_others() { sender } else { NONE };
        to_all(vm, to, except, init, f)
    } else if to.is_fixed() && to.is_logical() && vm.dense() {
        to_members(vm, to, init, f)
    } else {
        one_by_one(Deliveries(Targets { vm, to, sender, window: None }), init, f)
    }
}

/// A fixed interrupt for all but `except`.
#[inline(never)]
fn to_all<I: Inbox, B>(
    vm: &Vm<'_, I>,
    to: Message,
    except: usize,
    mut result: B,
    mut f: impl FnMut(B, (usize, Receipt)) -> B,
) -> B {
    for (index, slot) in vm.slots().iter().enumerate() {
        if index == except {
            continue;
        }
        if let Some(receipt) = slot.request_if(to.vector(), to.trigger(), ApicBase::present) {
            result = f(result, (index, receipt));
        }
    }
    result
}

/// A fixed interrupt to a logical destination whose candidates are known, in a VM where IDs are indices.
#[inline(never)]
fn to_members<I: Inbox, B>(
    vm: &Vm<'_, I>,
    to: Message,
    mut result: B,
    mut f: impl FnMut(B, (usize, Receipt)) -> B,
) -> B {
    let Some((mut first, ids)) = logical_ids(vm, to.id()) else {
        let targets = Targets { vm, to, sender: NONE, window: None };
        return one_by_one(Deliveries(targets), result, f);
    };
    // Most often the others are empty.
    let words = if ids[1..] == [0; 3] { 1 } else { 4 };
    for mut candidates in ids.into_iter().take(words) {
        while let Some(candidate) = take_lowest(&mut candidates) {
            let index = first.wrapping_add(candidate);
            let Some(slot) = vm.slot(index) else {
                break;
            };
            let meant = |base| slot.has_logical_id_with(base, to.id());
            if let Some(receipt) = slot.request_if(to.vector(), to.trigger(), meant) {
                result = f(result, (index, receipt));
            }
        }
        first = first.wrapping_add(WIDTH);
    }
    result
}

#[inline(never)]
fn one_by_one<I: Inbox, B>(
    deliveries: Deliveries<'_, I>,
    mut result: B,
    mut f: impl FnMut(B, (usize, Receipt)) -> B,
) -> B {
    for delivery in deliveries {
        result = f(result, delivery);
    }
    result
}

impl<I: Inbox> Iterator for Deliveries<'_, I> {
    type Item = (usize, Receipt);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.to.is_to_lowest_priority() {
            return self.next_lowest();
        }
        let (index, slot) = self.0.next_slot()?;
        Some((index, slot.receive_message(self.0.to)))
    }

    #[inline(always)]
    fn fold<B, F: FnMut(B, Self::Item) -> B>(self, init: B, mut f: F) -> B {
        let Targets { vm, to, sender, ref window } = self.0;
        if window.is_some() {
            return one_by_one(self, init, f);
        }
        let Some(index) = vm.only(to) else {
            return to_many(vm, to, sender, init, f);
        };
        let Some(slot) = vm.slot(index) else {
            return init;
        };
        let has_id = |base| slot.has_id_with(base, to.id());
        match slot.request_if(to.vector(), to.trigger(), has_id) {
            Some(receipt) => f(init, (index, receipt)),
            None => init,
        }
    }
}

impl<I> core::fmt::Debug for Deliveries<'_, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Deliveries").field("message", &self.0.to).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::{Address, ApicPage, Destination, DirectInbox, Profile};

    /// Driven from inside or by a loop: the same are told, and they are those whom the destination means.
    #[test]
    fn announcements_are_the_same_either_way() {
        let pages: Vec<ApicPage> = (0..4).map(|_| ApicPage::new()).collect();
        for (ids, writable) in
            [([0, 1, 2, 3], false), ([0, 1, 2, 3], true), ([0, 1, 2, 0x102], false)]
        {
            let profile = Profile::amd().with_writable_xapic_id(writable);
            let slot = |(&id, page)| Slot::new(page, id, profile, DirectInbox);
            let slots: Vec<_> = ids.iter().zip(&pages).map(slot).collect();
            // x2APIC mode, absent, and one that has another ID than it was made with.
            slots[1].set_base(ApicBase::from_bits(0xFEE0_0C00));
            slots[2].set_base(ApicBase::from_bits(0xFEE0_0000));
            pages[3].store(0x20, 9 << 24);
            let vm = Vm::new(&slots).unwrap();
            let numbers = [0u8, 1, 2, 3, 4, 9, 0xFF];
            let narrow = numbers.map(Address::Narrow);
            let wide = numbers.map(|id| Address::Wide(u32::from(id)));
            let addresses = narrow.into_iter().chain(wide).chain([Address::Wide(0x102)]);
            let addressed = addresses.flat_map(|address| {
                [Destination::Physical(address), Destination::Logical(address)]
            });
            let short = [Destination::SelfOnly, Destination::All, Destination::AllButSelf];
            for destination in addressed.chain(short) {
                let by_loop: Vec<_> = vm.announce(destination, Some(0)).collect();
                let mut from_inside = Vec::new();
                vm.announce(destination, Some(0)).for_each(|told| from_inside.push(told));
                assert_eq!(from_inside, by_loop, "{destination:?}");
                let told = by_loop.iter().map(|&(index, _)| index);
                assert!(told.eq(vm.targets(destination, Some(0))), "{destination:?}");
                let mut rest = vm.announce(destination, Some(0));
                let first = rest.next();
                let left = rest.fold(0, |count, _| count + 1) + usize::from(first.is_some());
                assert_eq!(left, by_loop.len(), "{destination:?}");
            }
        }
    }
}
