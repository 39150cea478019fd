//! 256-bit registers: one bit a vector, eight words 16 bytes apart.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::page::ApicPage;
use crate::vector::Vector;

/// IRR, ISR, TMR (or AMD's IER) as a set of vectors, in place in the page.
///
/// Vector `v` is bit `v % 32` of the word at `base + 16 * (v / 32)` (SDM Vol. 3A Figure 10-20).
/// Bits 0 to 15 of the first word are never reported: such vectors are illegal, and a page that
/// holds one was scribbled on.
#[derive(Clone, Copy)]
pub struct VectorSet<'p> {
    page: &'p ApicPage,
    base: u16,
}

impl<'p> VectorSet<'p> {
    #[inline]
    pub(crate) const fn new(page: &'p ApicPage, base: u16) -> Self {
        Self { page, base }
    }

    /// Whether `vector` is in the set. Acquire: pairs with [`insert`](Self::insert).
    #[inline]
    #[must_use]
    pub fn contains(self, vector: Vector) -> bool {
        self.word(vector).load(Ordering::Acquire) & bit(vector) != 0
    }

    /// The highest vector in the set. Acquire: pairs with [`insert`](Self::insert).
    #[inline]
    #[must_use]
    pub fn highest(self) -> Option<Vector> {
        self.highest_of(|_, word| word)
    }

    /// Whether the set has no vector.
    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        (0..8).fold(0, |all, index| all | self.bank(index)) == 0
    }

    /// Adds `vector` with a locked OR and says whether it was absent.
    ///
    /// Any thread may call this on a register that others change too. Release, so that what the
    /// poster wrote before (the TMR bit, device memory) is seen by whoever finds the bit; SeqCst, so
    /// that a SeqCst load that follows (where is the vCPU?) comes after it for everybody.
    #[inline]
    pub fn insert(self, vector: Vector) -> bool {
        self.word(vector).fetch_or(bit(vector), Ordering::SeqCst) & bit(vector) == 0
    }

    /// Removes `vector` with a locked AND and says whether it was there.
    #[inline]
    pub fn remove(self, vector: Vector) -> bool {
        self.word(vector).fetch_and(!bit(vector), Ordering::AcqRel) & bit(vector) != 0
    }

    /// Adds `vector` with a plain load and store: for the owner of a register nobody else writes
    /// while the vCPU is outside guest mode (ISR).
    #[inline]
    pub fn insert_owned(self, vector: Vector) {
        let word = self.word(vector);
        word.store(word.load(Ordering::Relaxed) | bit(vector), Ordering::Relaxed);
    }

    /// Removes `vector` with a plain load and store; the owner's counterpart of
    /// [`insert_owned`](Self::insert_owned).
    #[inline]
    pub fn remove_owned(self, vector: Vector) {
        let word = self.word(vector);
        word.store(word.load(Ordering::Relaxed) & !bit(vector), Ordering::Relaxed);
    }

    /// Makes `vector` a member or not, with a locked operation only if that is a change.
    #[inline]
    pub fn assign(self, vector: Vector, member: bool) {
        let bit = bit(vector);
        let wanted = if member { bit } else { 0 };
        if self.word(vector).load(Ordering::Acquire) & bit != wanted {
            self.change(vector, member);
        }
    }

    #[cold]
    fn change(self, vector: Vector, member: bool) {
        if member {
            self.insert(vector);
        } else {
            self.remove(vector);
        }
    }

    /// Vectors `32 * index` to `32 * index + 31` as a word, illegal ones left out.
    #[inline]
    #[must_use]
    pub fn bank(self, index: usize) -> u32 {
        legal(index, self.bank_word(index).load(Ordering::Acquire))
    }

    /// Adds a whole bank with one locked OR, or nothing if `bits` is zero.
    #[inline]
    pub fn insert_bank(self, index: usize, bits: u32) {
        if bits != 0 {
            self.bank_word(index).fetch_or(bits, Ordering::AcqRel);
        }
    }

    /// Empties a whole bank with one exchange and says what was there. Acquire and release.
    #[inline]
    pub fn take_bank(self, index: usize) -> u32 {
        self.bank_word(index).swap(0, Ordering::AcqRel)
    }

    /// Empties the set.
    pub fn clear(self) {
        for index in 0..8 {
            self.bank_word(index).store(0, Ordering::Relaxed);
        }
    }

    /// The members, highest first.
    pub fn iter(self) -> impl Iterator<Item = Vector> + use<'p> {
        (0..=255u8).rev().filter_map(Vector::new).filter(move |&vector| self.contains(vector))
    }

    /// The highest vector left when each bank has gone through `select(index, word)`.
    #[inline]
    pub(crate) fn highest_of(self, select: impl Fn(usize, u32) -> u32) -> Option<Vector> {
        let bank = |index| select(index, self.bank(index));
        let first = |banks: Range<usize>| {
            banks.rev().map(|index| (index, bank(index))).find(|&(_, word)| word != 0)
        };
        // Most sets are empty or hold one vector: half of the banks at a time finds that out.
        let upper = if bank(4) | bank(5) | bank(6) | bank(7) != 0 { first(4..8) } else { None };
        let (index, word) = upper.or_else(|| first(0..4))?;
        let top = 31u32.checked_sub(word.leading_zeros())?;
        Vector::new((index as u8) << 5 | top as u8)
    }

    /// For the owner: removes the highest vector by a plain store.
    #[inline]
    pub(crate) fn take_highest_owned(self) -> Option<Vector> {
        let vector = self.highest()?;
        let word = self.word(vector);
        // The bit is set.
        word.store(word.load(Ordering::Relaxed) ^ bit(vector), Ordering::Relaxed);
        Some(vector)
    }

    /// The highest vector, if nothing in `above` is of its class or a higher one.
    #[inline]
    pub(crate) fn highest_above_classes_of(self, above: Self) -> Option<Vector> {
        let banks = |index| (self.bank(index), above.bank(index));
        let first = |indices: Range<usize>| {
            let both = indices.rev().map(|index| (index, banks(index)));
            both.into_iter().find(|&(_, (own, other))| own | other != 0)
        };
        let any = |index| self.bank(index) | above.bank(index);
        let upper = if any(4) | any(5) | any(6) | any(7) != 0 { first(4..8) } else { None };
        let (index, (own, other)) = upper.or_else(|| first(0..4))?;
        let top = 31u32.checked_sub(own.leading_zeros())?;
        // A bank is two classes: bit 4 of the vector says which.
        let free = other >> (top & 16) == 0;
        Vector::new((index as u8) << 5 | top as u8).filter(|_| free)
    }

    /// Whether the set has no vector that is `highest` or lower.
    #[inline]
    pub(crate) fn is_empty_up_to(self, highest: Vector) -> bool {
        let lower = self.bank(0) | self.bank(1) | self.bank(2) | self.bank(3);
        if highest.get() < 0x80 {
            return lower == 0;
        }
        lower | self.bank(4) | self.bank(5) | self.bank(6) | self.bank(7) == 0
    }

    #[inline]
    fn word(self, vector: Vector) -> &'p AtomicU32 {
        self.bank_word(usize::from(vector.get()) >> 5)
    }

    #[inline]
    fn bank_word(self, index: usize) -> &'p AtomicU32 {
        self.page.word(self.base + 0x10 * (index as u16 & 7))
    }
}

#[inline]
const fn bit(vector: Vector) -> u32 {
    1 << (vector.get() as u32 & 31)
}

#[inline]
const fn legal(index: usize, word: u32) -> u32 {
    if index == 0 { word & 0xFFFF_0000 } else { word }
}

impl core::fmt::Debug for VectorSet<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(raw: u8) -> Vector {
        Vector::new(raw).unwrap()
    }

    #[test]
    fn every_vector_has_the_manuals_bit() {
        for raw in 16..=255u8 {
            let page = ApicPage::new();
            assert!(page.irr().insert(vector(raw)));
            assert!(!page.irr().insert(vector(raw)));
            let offset = 0x200 | (u16::from(raw & 0xE0) >> 1);
            assert_eq!(page.load(offset), 1 << (raw & 0x1F));
            assert_eq!(page.irr().highest(), Some(vector(raw)));
            assert!(page.irr().remove(vector(raw)));
            assert!(page.irr().is_empty());
        }
    }

    #[test]
    fn illegal_vectors_in_the_page_are_not_seen() {
        let page = ApicPage::new();
        page.store(0x200, 0x0000_FFFF);
        assert_eq!(page.irr().highest(), None);
        page.store(0x200, 0x0001_FFFF);
        assert_eq!(page.irr().highest(), Some(Vector::LOWEST));
        assert_eq!(page.irr().iter().count(), 1);
    }

    #[test]
    fn one_pass_says_what_two_say() {
        // All pairs of one request and one in service, and each alone; something low beside both.
        for requested in 15..=255u8 {
            for serving in 15..=255u8 {
                let page = ApicPage::new();
                let (request, service) = (Vector::new(requested), Vector::new(serving));
                if let Some(vector) = request {
                    page.irr().insert(vector);
                    page.irr().insert(Vector::LOWEST);
                }
                if let Some(vector) = service {
                    page.isr().insert_owned(vector);
                    page.isr().insert_owned(Vector::LOWEST);
                }
                let class = service.map_or(0, Vector::class);
                let expected = request.filter(|vector| vector.class() > class);
                assert_eq!(page.irr().highest_above_classes_of(page.isr()), expected);
            }
        }
    }

    #[test]
    fn empty_up_to() {
        for raw in 16..=255 {
            let page = ApicPage::new();
            let top = vector(raw);
            assert!(page.isr().is_empty_up_to(top));
            page.store(0x100, 0xFFFF);
            assert!(page.isr().is_empty_up_to(top), "illegal vectors are none");
            for lower in 16..=raw {
                page.isr().insert_owned(vector(lower));
                assert!(!page.isr().is_empty_up_to(top), "{lower} below {raw}");
                page.isr().remove_owned(vector(lower));
            }
        }
    }

    #[test]
    fn the_highest_of_several_wins() {
        let page = ApicPage::new();
        for raw in [0x31, 0xF3, 0x5F, 0x10] {
            page.isr().insert_owned(vector(raw));
        }
        for raw in [0xF3, 0x5F, 0x31, 0x10] {
            assert_eq!(page.isr().highest(), Some(vector(raw)));
            page.isr().remove_owned(vector(raw));
        }
    }
}
