//! How the vCPUs are found that a destination means: 64 candidates at a time.

use crate::directory::Ids;
use crate::inbox::Inbox;
use crate::message::Message;
use crate::slot::Slot;
use crate::vm::Vm;

/// Candidates, one bit each: those are asked whether the destination means them. Most destinations
/// have one window, so that the search is a loop over the bits of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Bit n of `candidates` is index, or ID, `first + n`.
    first: usize,
    candidates: u64,
    by_id: bool,
    question: Question,
    further: Further,
}

/// What a candidate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Nothing.
    None,
    /// Whether its APIC is present.
    Present,
    /// Whether it has the physical ID.
    Physical,
    /// Whether it has the logical ID.
    Logical,
}

/// The windows after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Further {
    /// There are none.
    None,
    /// Every vCPU but `except`.
    Every { except: usize },
    /// These IDs.
    Listed([u64; 3]),
    /// The IDs that differ by a multiple of 100.
    Aliases,
}

/// No index.
pub(crate) const NONE: usize = usize::MAX;

/// How many candidates a window has.
pub(crate) const WIDTH: usize = 64;

/// How far apart the IDs are that an APIC in xAPIC mode cannot tell apart.
const ALIAS: usize = 0x100;

impl Window {
    /// The end.
    pub(crate) const NONE: Self = Self {
        first: 0,
        candidates: 0,
        by_id: false,
        question: Question::None,
        further: Further::None,
    };

    /// The first one of those whom `to` is addressed to.
    #[inline(always)]
    pub(crate) fn first<I: Inbox>(vm: &Vm<'_, I>, to: Message, sender: usize) -> Self {
        if to.is_to_self() {
            Self { first: sender, candidates: 1, ..Self::NONE }
        } else if to.is_to_others() {
            Self::every(vm, Question::Present, sender)
        } else if to.is_broadcast() {
            Self::every(vm, Question::Present, NONE)
        } else if to.is_logical() {
            Self::logical(vm, to.id())
        } else {
            Self::physical(vm, to.id())
        }
    }

    #[inline(always)]
    fn every<I: Inbox>(vm: &Vm<'_, I>, question: Question, except: usize) -> Self {
        let further = Further::Every { except };
        Self { candidates: every(vm.slots().len(), 0, except), question, further, ..Self::NONE }
    }

    #[inline(always)]
    fn physical<I: Inbox>(vm: &Vm<'_, I>, id: u32) -> Self {
        let by_id = !vm.dense();
        let physical = Self { candidates: 1, by_id, question: Question::Physical, ..Self::NONE };
        if !vm.may_have_aliases(id) {
            return Self { first: id as usize, ..physical };
        }
        // With sparse IDs the walk over aliases would be longer than that over all.
        let sparse = vm.highest_id() >> 8 > vm.slots().len() as u32;
        if vm.rewritable() || sparse {
            return Self::every(vm, Question::Physical, NONE);
        }
        Self { first: id as usize & 0xFF, further: Further::Aliases, ..physical }
    }

    #[inline(always)]
    fn logical<I: Inbox>(vm: &Vm<'_, I>, id: u32) -> Self {
        let Some((first, ids)) = logical_ids(vm, id) else {
            return Self::every(vm, Question::Logical, NONE);
        };
        let [candidates, second, third, fourth] = ids;
        let further = match [second, third, fourth] {
            [0, 0, 0] => Further::None,
            others => Further::Listed(others),
        };
        Self { first, candidates, by_id: !vm.dense(), question: Question::Logical, further }
    }

    /// Goes to the next window; `false` if there is none.
    #[inline(always)]
    fn advance<I: Inbox>(&mut self, vm: &Vm<'_, I>) -> bool {
        match self.further {
            Further::None => false,
            Further::Every { except } => {
                self.first += WIDTH;
                self.candidates = every(vm.slots().len(), self.first, except);
                self.first < vm.slots().len()
            }
            Further::Listed([next, second, third]) => {
                self.first += WIDTH;
                self.candidates = next;
                self.further = Further::Listed([second, third, 0]);
                next | second | third != 0
            }
            Further::Aliases => {
                // The highest ID is below 256 * (vCPUs + 1), so this is far from overflow.
                self.first += ALIAS;
                self.candidates = 1;
                self.first <= vm.highest_id() as usize
            }
        }
    }

    /// The next vCPU that `to` is addressed to.
    pub(crate) fn pull<'s, I: Inbox>(
        &mut self,
        vm: &Vm<'s, I>,
        to: Message,
    ) -> Option<(usize, &'s Slot<'s, I>)> {
        loop {
            while let Some(candidate) = take_lowest(&mut self.candidates) {
                let found = self.ask(vm, to, candidate);
                if found.is_some() {
                    return found;
                }
            }
            if !self.advance(vm) {
                return None;
            }
        }
    }

    /// All vCPUs that are left, one after the other.
    #[inline(always)]
    pub(crate) fn fold<'s, I: Inbox, B>(
        mut self,
        vm: &Vm<'s, I>,
        to: Message,
        mut result: B,
        mut f: impl FnMut(B, usize, &'s Slot<'s, I>) -> B,
    ) -> B {
        loop {
            let mut candidates = self.candidates;
            while let Some(candidate) = take_lowest(&mut candidates) {
                if let Some((index, slot)) = self.ask(vm, to, candidate) {
                    result = f(result, index, slot);
                }
            }
            if !self.advance(vm) {
                return result;
            }
        }
    }

    /// The vCPU of bit `candidate`, if `to` means it.
    #[inline(always)]
    fn ask<'s, I: Inbox>(
        &self,
        vm: &Vm<'s, I>,
        to: Message,
        candidate: usize,
    ) -> Option<(usize, &'s Slot<'s, I>)> {
        let mut index = self.first.wrapping_add(candidate);
        if self.by_id {
            index = vm.index_of(index as u32)?;
        }
        let slot = vm.slot(index)?;
        self.question.put_to(slot, to.id()).then_some((index, slot))
    }
}

/// The IDs that may have the logical ID `id`, one bit each from the first one on; `None` if that is not
/// known.
#[inline(always)]
pub(crate) fn logical_ids<I: Inbox>(vm: &Vm<'_, I>, id: u32) -> Option<(usize, Ids)> {
    // Above 20 bits, IDs have the LDR of another ID.
    if vm.highest_id() > 0xF_FFFF {
        return None;
    }
    if id > 0xFF {
        return Some(((id >> 16 << 4) as usize, [u64::from(id & 0xFFFF), 0, 0, 0]));
    }
    Some((0, vm.directory()?.listed(id)?))
}

/// Takes the lowest bit out of `bits`.
#[inline(always)]
pub(crate) fn take_lowest(bits: &mut u64) -> Option<usize> {
    if *bits == 0 {
        return None;
    }
    let lowest = bits.trailing_zeros();
    *bits &= *bits - 1;
    Some(lowest as usize)
}

/// The vCPUs among `vcpus` in the window at `first`, without `except`.
#[inline(always)]
const fn every(vcpus: usize, first: usize, except: usize) -> u64 {
    let all = match vcpus.saturating_sub(first) {
        left @ 0..WIDTH => !(u64::MAX << left),
        _ => u64::MAX,
    };
    match except.wrapping_sub(first) {
        bit @ 0..WIDTH => all & !(1 << bit),
        _ => all,
    }
}

impl Question {
    #[inline(always)]
    fn put_to<I: Inbox>(self, slot: &Slot<'_, I>, id: u32) -> bool {
        match self {
            Self::None => true,
            Self::Present => slot.present(),
            Self::Physical => slot.has_id(id),
            Self::Logical => slot.has_logical_id(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    use crate::{Address, ApicPage, Destination, DirectInbox, Directory, Profile, Vm};

    /// How many candidates the first window has, and where the others come from.
    fn candidates(
        ids: [u32; 3],
        directory: Option<&Directory>,
        destination: Destination,
    ) -> (u32, Further) {
        let page = ApicPage::new();
        let slots = ids.map(|id| {
            let slot = Slot::new(&page, id, Profile::intel(), DirectInbox);
            match directory {
                Some(directory) => slot.with_directory(directory),
                None => slot,
            }
        });
        let window = Window::first(&Vm::new(&slots).unwrap(), Message::to(destination), NONE);
        (window.candidates.count_ones(), window.further)
    }

    const EVERYBODY: (u32, Further) = (3, Further::Every { except: NONE });

    #[test]
    fn no_guest_can_ask_for_a_long_walk() {
        let physical = Destination::Physical(Address::Wide(5));
        let logical = Destination::Logical(Address::Wide(0xF_0001));
        let candidates = |ids, destination| candidates(ids, None, destination);
        assert_eq!(candidates([0, 1, 5], physical), (1, Further::None));
        assert_eq!(candidates([0, 1, 0x105], physical), (1, Further::Aliases));
        assert_eq!(candidates([0, 1, 0xFFFF_FF00], physical), EVERYBODY);
        assert_eq!(candidates([0, 1, 2], logical), (1, Further::None));
        assert_eq!(candidates([0, 1, 0x10_0000], logical), EVERYBODY);
    }

    #[test]
    fn a_directory_names_the_few() {
        let logical = Destination::Logical(Address::Narrow(3));
        let directory = Directory::new();
        assert_eq!(candidates([0, 1, 2], None, logical), EVERYBODY);
        assert_eq!(candidates([0, 1, 2], Some(&directory), logical), (2, Further::None));
        // In xAPIC mode an APIC above FF is found by the low byte of its ID.
        let physical = Destination::Physical(Address::Wide(5));
        let directory = Directory::new();
        let found = candidates([0, 1, 0x105], Some(&directory), physical);
        assert_eq!(found, (1, Further::Aliases));
    }

    #[test]
    fn windows_follow_each_other() {
        let pages: Vec<ApicPage> = (0..200).map(|_| ApicPage::new()).collect();
        let slot = |(id, page)| Slot::new(page, id, Profile::intel(), DirectInbox);
        let slots: Vec<_> = (0..).zip(&pages).map(slot).collect();
        let vm = Vm::new(&slots).unwrap();
        for count in [1, 2, 63, 64, 65, 127, 128, 129, 192, 200] {
            let vm = Vm::new(&vm.slots()[..count]).unwrap();
            for sender in [0, 1, 63, 64, 65, 127, 128, 199, 200, 5000] {
                let others: Vec<usize> = (0..count).filter(|&index| index != sender).collect();
                let targets = vm.targets(Destination::AllButSelf, Some(sender));
                assert_eq!(targets.collect::<Vec<_>>(), others, "{count} but {sender}");
            }
        }
    }
}
