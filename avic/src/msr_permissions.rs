//! The MSR permission map: which MSR accesses of the guest exit.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use static_assertions::const_assert_eq;

/// The MSR permission map of one vCPU, in the hardware's layout (APM Vol. 2 15.11): 8 KiB, two bits
/// an MSR, the lower for reads, the higher for writes; MSRs 0 to 1FFF, then C000_0000 on, then
/// C001_0000 on. A bit that is 1 makes the access exit; other MSRs always exit.
///
/// The x2APIC range, 800 to 8FF, is this crate's; the rest is the hypervisor's.
///
/// Words are atomic so that a shared reference suffices; all accesses are relaxed. Change it on the
/// CPU that enters, between exit and entry.
#[repr(C, align(4096))]
pub struct MsrPermissions {
    words: [AtomicU64; 1024],
}

const_assert_eq!(size_of::<MsrPermissions>(), 8192);
const_assert_eq!(align_of::<MsrPermissions>(), 4096);

/// The word of MSRs 800 to 81F.
const X2APIC: usize = 0x800 / 32;

impl MsrPermissions {
    /// A map with which every access exits.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [const { AtomicU64::new(u64::MAX) }; 1024] }
    }

    /// Makes every access to MSRs 800 to 8FF exit. Without x2AVIC, one let through would reach the
    /// physical APIC.
    pub(crate) fn intercept_all_x2apic(&self) {
        for word in self.x2apic() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Lets those accesses to MSRs 800 to 8FF through that x2AVIC serves rightly, and makes all
    /// others exit.
    ///
    /// Which checks of x2APIC mode the processor does before AVIC looks at an access is not known
    /// (a write to the read-only ID is said to trap, where x2APIC mode says #GP). So nothing is let
    /// through but reads of registers whose value stands in the page, and writes of TPR, EOI, ICR
    /// and SELF IPI. The current count is in no page.
    pub(crate) fn allow_x2avic(&self) {
        for (index, word) in self.x2apic().iter().enumerate() {
            let mut bits = u64::MAX;
            for place in 0..32 {
                let msr = (index * 32 + place) as u8;
                if READS.iter().any(|&(first, last)| (first..=last).contains(&msr)) {
                    bits &= !(1 << (2 * place));
                }
                if WRITES.contains(&msr) {
                    bits &= !(2 << (2 * place));
                }
            }
            word.store(bits, Ordering::Relaxed);
        }
    }

    /// Whether a read of `msr` exits.
    #[must_use]
    pub fn intercepts_read(&self, msr: u32) -> bool {
        self.bits(msr).is_none_or(|bits| bits & 1 != 0)
    }

    /// Whether a write of `msr` exits.
    #[must_use]
    pub fn intercepts_write(&self, msr: u32) -> bool {
        self.bits(msr).is_none_or(|bits| bits & 2 != 0)
    }

    /// Makes reads of `msr` exit, or lets them through. Returns whether it could: an MSR outside
    /// the map always exits, and one of the x2APIC range is not for the hypervisor.
    pub fn intercept_read(&self, msr: u32, intercept: bool) -> bool {
        self.intercept(msr, 1, intercept)
    }

    /// Makes writes of `msr` exit, or lets them through, as
    /// [`intercept_read`](Self::intercept_read).
    pub fn intercept_write(&self, msr: u32, intercept: bool) -> bool {
        self.intercept(msr, 2, intercept)
    }

    /// The words as the processor reads them.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 1024] {
        &self.words
    }

    fn intercept(&self, msr: u32, which: u64, intercept: bool) -> bool {
        let Some((word, shift)) = place(msr) else { return false };
        let Some(word) = self.words.get(word) else { return false };
        if msr >> 8 == 8 {
            return false;
        }
        if intercept {
            word.fetch_or(which << shift, Ordering::Relaxed);
        } else {
            word.fetch_and(!(which << shift), Ordering::Relaxed);
        }
        true
    }

    fn bits(&self, msr: u32) -> Option<u64> {
        let (word, shift) = place(msr)?;
        Some(self.words.get(word)?.load(Ordering::Relaxed) >> shift & 3)
    }

    fn x2apic(&self) -> &[AtomicU64] {
        self.words.get(X2APIC..X2APIC + 8).unwrap_or_default()
    }
}

/// ID, version, TPR, PPR, LDR, SVR, ISR, TMR and IRR, ESR, ICR, the six LVT entries, initial count,
/// divide configuration; less 800.
const READS: [(u8, u8); 8] = [
    (0x02, 0x03),
    (0x08, 0x08),
    (0x0a, 0x0a),
    (0x0d, 0x0d),
    (0x0f, 0x28),
    (0x30, 0x30),
    (0x32, 0x38),
    (0x3e, 0x3e),
];

/// TPR, EOI, ICR, SELF IPI; less 800.
const WRITES: [u8; 4] = [0x08, 0x0b, 0x30, 0x3f];

/// The word and the shift of the two bits of `msr`.
const fn place(msr: u32) -> Option<(usize, u32)> {
    let base = match msr {
        0..=0x1FFF => 0,
        0xC000_0000..=0xC000_1FFF => 256,
        0xC001_0000..=0xC001_1FFF => 512,
        _ => return None,
    };
    Some((base + (msr & 0x1FFF) as usize / 32, msr % 32 * 2))
}

impl Default for MsrPermissions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MsrPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsrPermissions").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use vlapic_core::{Access, Mode, Profile, Register};

    use super::*;
    use crate::handling::Handling;

    #[test]
    fn only_what_hardware_serves_and_the_guest_may_do() {
        let map = Box::new(MsrPermissions::new());
        map.allow_x2avic();
        let profile = Profile::amd();
        for msr in 0x800..=0x8FF {
            let register = Register::from_msr(msr);
            let access = register.map(|register| Access::of(register, Mode::X2Apic, &profile));
            let (mut read, mut write) = (false, false);
            if let (Some(register), Some(access)) = (register, access) {
                read = access.readable() && Handling::of_read(register, false) == Handling::Allowed;
                write = access.writable()
                    && Handling::of_write(register, false) == Handling::Accelerated;
            }
            assert_eq!(map.intercepts_read(msr), !read, "read of {msr:#x}");
            assert_eq!(map.intercepts_write(msr), !write, "write of {msr:#x}");
        }
        map.intercept_all_x2apic();
        assert!((0x800..=0x8FF).all(|msr| map.intercepts_read(msr) && map.intercepts_write(msr)));
    }

    #[test]
    fn others_are_the_hypervisors() {
        let map = Box::new(MsrPermissions::new());
        assert!(!map.intercept_read(0x808, false));
        assert!(!map.intercept_write(0x4000_0000, false));
        for (msr, byte, bit) in
            [(0x10, 0x4, 0), (0x1FFF, 0x7FF, 6), (0xC000_0080, 0x820, 0), (0xC001_1FFF, 0x17FF, 6)]
        {
            assert!(map.intercept_read(msr, false) && !map.intercepts_read(msr), "{msr:#x}");
            assert!(map.intercepts_write(msr));
            let word = map.words()[byte / 8].load(Ordering::Relaxed);
            assert_eq!(word, !(1 << (byte % 8 * 8 + bit)), "{msr:#x}");
            assert!(map.intercept_write(msr, false) && !map.intercepts_write(msr));
            assert!(map.intercept_read(msr, true) && map.intercept_write(msr, true));
        }
    }
}
