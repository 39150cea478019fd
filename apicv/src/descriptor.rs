//! The posted-interrupt descriptor.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use memoffset::offset_of;
use static_assertions::const_assert_eq;
use vlapic_core::Vector;

/// A posted-interrupt descriptor: 64 bytes, 64-byte aligned, write-back memory.
///
/// | bits | field |
/// |---|---|
/// | 255:0 | PIR, one bit a vector |
/// | 256 | ON, a notification is outstanding |
/// | 257 | SN, notifications are suppressed |
/// | 279:272 | NV, the notification vector |
/// | 319:288 | NDST, the physical APIC to notify |
/// | 511:320 | software's; not used here |
///
/// The processor, VT-d and every poster change it at any time; only locked operations touch it
/// while it is in use. SDM Vol. 3C 29.6; VT-d 9.11.
///
/// Bochs up to 3.0 wants it 4 KiB aligned; put it in a page of its own where that matters.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct PostedDescriptor {
    pir: [AtomicU64; 4],
    control: AtomicU64,
    software: [AtomicU64; 3],
}

const_assert_eq!(size_of::<PostedDescriptor>(), 64);
const_assert_eq!(align_of::<PostedDescriptor>(), 64);
const _: () = assert!(offset_of!(PostedDescriptor, pir) == 0);
const _: () = assert!(offset_of!(PostedDescriptor, control) == 32);

/// Bits 319:256 of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Control(u64);

impl Control {
    const ON: u64 = 1 << 0;
    const SN: u64 = 1 << 1;
    const NV_SHIFT: u32 = 16;
    const NDST_SHIFT: u32 = 32;

    /// NV and NDST with ON and SN as given.
    #[inline]
    #[must_use]
    pub const fn new(on: bool, sn: bool, nv: u8, ndst: u32) -> Self {
        Self(
            (on as u64)
                | (sn as u64) << 1
                | (nv as u64) << Self::NV_SHIFT
                | (ndst as u64) << Self::NDST_SHIFT,
        )
    }

    /// The word.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// ON: whoever set it notifies; later posters need not.
    #[inline]
    #[must_use]
    pub const fn on(self) -> bool {
        self.0 & Self::ON != 0
    }

    /// The word with nothing but ON and SN; zero if neither is set.
    #[inline]
    pub(crate) const fn on_or_sn(self) -> u64 {
        self.0 & (Self::ON | Self::SN)
    }

    /// The word with ON clear.
    #[inline]
    pub(crate) const fn without_on(self) -> Self {
        Self(self.0 & !Self::ON)
    }

    /// SN: VT-d posts in silence.
    #[inline]
    #[must_use]
    pub const fn sn(self) -> bool {
        self.0 & Self::SN != 0
    }

    /// NV: the physical vector that tells the target.
    #[inline]
    #[must_use]
    pub const fn nv(self) -> u8 {
        (self.0 >> Self::NV_SHIFT) as u8
    }

    /// NDST: a 32-bit x2APIC ID, or an xAPIC ID in bits 15:8, as the host's mode has it.
    #[inline]
    #[must_use]
    pub const fn ndst(self) -> u32 {
        (self.0 >> Self::NDST_SHIFT) as u32
    }
}

/// What a post left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Post {
    /// The vector was pending, or a notification is outstanding: nothing.
    Coalesced,
    /// This post set ON: the target has to be told, as the control word says since.
    Notify(Control),
}

impl PostedDescriptor {
    /// An empty descriptor: nothing posted, SN clear, NV and NDST zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pir: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new(0),
            software: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// Posts `vector`; any thread may call.
    ///
    /// Locked OR on PIR, a load of ON, and if that is clear a locked OR on it. A set bit or a set ON
    /// ends it: whoever set it has notified or is about to. The target clears ON, with a locked
    /// operation, before it looks at PIR. So if ON was still set at the load
    /// here, ON is cleared, and PIR looked at, after the OR on PIR, which finds the bit; else this
    /// post sets ON anew.
    ///
    /// Ordering: it takes the single order of SeqCst operations that a load does not come before a
    /// store to another place, that of PIR. The OR on PIR and the load are both in it. On x86 no load
    /// passes an earlier locked operation (SDM Vol. 3A 8.2.3.9), so the load is a plain one.
    #[inline]
    pub fn post(&self, vector: Vector) -> Post {
        let bit = 1u64 << (vector.get() & 63);
        let word = &self.pir[usize::from(vector.get() >> 6)];
        if word.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return Post::Coalesced;
        }
        if self.control.load(Ordering::SeqCst) & Control::ON != 0 {
            return Post::Coalesced;
        }
        // Another poster may have set it since: then that one notifies.
        if self.control.fetch_or(Control::ON, Ordering::SeqCst) & Control::ON != 0 {
            return Post::Coalesced;
        }
        // Not what the OR found: then it would have to be a loop. A target that changes NV, NDST or
        // SN looks at PIR afterwards, so it finds the bit, or its change is what is loaded here.
        Post::Notify(self.control())
    }

    /// Takes `vector` out of PIR again; whether it was there.
    pub(crate) fn retract(&self, vector: Vector) -> bool {
        let bit = 1u64 << (vector.get() & 63);
        let word = &self.pir[usize::from(vector.get() >> 6)];
        word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Bits 319:256 as they stand: one load.
    #[inline]
    #[must_use]
    pub fn control(&self) -> Control {
        Control(self.control.load(Ordering::Acquire))
    }

    /// Whether PIR has a bit: four loads.
    #[inline]
    #[must_use]
    pub fn has_posts(&self) -> bool {
        self.pir.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Clears ON, then moves PIR out, word by word, to `into(index, bits)`: vectors `64 * index`
    /// on. The owner calls it, outside guest mode.
    ///
    /// ON is cleared before PIR is looked at, so a poster who found ON set and kept still has its bit
    /// drained here; and a word is only swapped if it is not zero. Both, and the change of SN, NV or
    /// NDST that may have gone before, are SeqCst, so their order is one for everybody; on x86 it is
    /// the locked operation that keeps the loads of PIR behind it.
    #[inline]
    pub(crate) fn drain(&self, mut into: impl FnMut(usize, u64)) {
        if self.control().on() {
            self.control.fetch_and(!Control::ON, Ordering::SeqCst);
        }
        for (index, word) in self.pir.iter().enumerate() {
            if word.load(Ordering::SeqCst) != 0 {
                into(index, word.swap(0, Ordering::SeqCst));
            }
        }
    }

    /// Forgets what was posted: ON first, then every word of PIR, zero or not, with a release, so
    /// that a poster who comes later and finds its word cleared sees what went before this call.
    pub(crate) fn clear(&self) {
        self.control.fetch_and(!Control::ON, Ordering::SeqCst);
        for word in &self.pir {
            word.swap(0, Ordering::SeqCst);
        }
    }

    /// Replaces SN, NV and NDST, keeping ON, which others may set meanwhile; returns what was
    /// there.
    pub(crate) fn set_target(&self, sn: bool, nv: u8, ndst: u32) -> Control {
        let replace = |word| Some(Control::new(Control(word).on(), sn, nv, ndst).bits());
        match self.control.fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace) {
            Ok(before) | Err(before) => Control(before),
        }
    }

    /// As [`set_target`](Self::set_target) with SN clear, but only while NV is `from`; else `None`.
    pub(crate) fn retarget(&self, from: u8, ndst: u32) -> Option<Control> {
        let replace = |word| {
            let old = Control(word);
            let new = Control::new(old.on(), false, from, ndst).bits();
            (old.nv() == from && !old.sn()).then_some(new)
        };
        self.control.fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace).ok().map(Control)
    }

    /// Sets SN with a locked OR.
    pub(crate) fn suppress(&self) {
        self.control.fetch_or(Control::SN, Ordering::SeqCst);
    }

    /// Sets ON if PIR has a bit, so that what VT-d posted under SN is not forgotten; whether it has.
    /// SN must have been cleared before. A poster that has set PIR and not yet ON then tells nobody,
    /// so the caller has to look at PIR, or have somebody look, afterwards.
    pub(crate) fn recompute_on(&self) -> bool {
        fence(Ordering::SeqCst);
        let posted = self.has_posts();
        if posted {
            self.control.fetch_or(Control::ON, Ordering::SeqCst);
        }
        posted
    }

    /// All eight 64-bit words, for silicon models.
    #[must_use]
    pub fn words(&self) -> [&AtomicU64; 8] {
        let [a, b, c, d] = &self.pir;
        let [x, y, z] = &self.software;
        [a, b, c, d, &self.control, x, y, z]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(raw: u8) -> Vector {
        Vector::new(raw).unwrap()
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let descriptor = PostedDescriptor::new();
        assert_eq!(descriptor.set_target(true, 0xF2, 0x1234).bits(), 0);
        let word = descriptor.words()[4].load(Ordering::Relaxed);
        assert_eq!(word, 0x0000_1234_00F2_0002);
        let Post::Notify(control) = descriptor.post(vector(0xE7)) else {
            panic!("a fresh post notifies");
        };
        assert_eq!((control.nv(), control.ndst(), control.sn()), (0xF2, 0x1234, true));
        assert_eq!(descriptor.words()[3].load(Ordering::Relaxed), 1 << (0xE7 - 0xC0));
        assert!(descriptor.control().on());
    }

    #[test]
    fn one_notification_until_drained() {
        let descriptor = PostedDescriptor::new();
        assert!(matches!(descriptor.post(vector(0x31)), Post::Notify(_)));
        assert_eq!(descriptor.post(vector(0x31)), Post::Coalesced);
        assert_eq!(descriptor.post(vector(0x92)), Post::Coalesced);
        let mut drained = [0; 4];
        descriptor.drain(|index, bits| drained[index] = bits);
        assert_eq!(drained, [1 << 0x31, 0, 1 << 0x12, 0]);
        assert!(!descriptor.control().on());
        assert!(matches!(descriptor.post(vector(0x31)), Post::Notify(_)));
    }

    #[test]
    fn on_comes_back_for_posts_made_under_sn() {
        let descriptor = PostedDescriptor::new();
        // What VT-d does while SN is set: PIR without ON.
        descriptor.words()[1].store(4, Ordering::Relaxed);
        descriptor.set_target(false, 0xF2, 0);
        assert!(descriptor.recompute_on());
        assert!(descriptor.control().on());
    }
}
