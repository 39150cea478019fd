//! The MSR bitmap: which MSR accesses of the guest exit.

use core::sync::atomic::{AtomicU64, Ordering};

use static_assertions::const_assert_eq;
use vlapic_core::Mode;

use crate::negotiate::{Feature, Features};

/// The MSR bitmap of one vCPU, in the hardware's layout (SDM Vol. 3C 24.6.9): four bitmaps of 1 KiB
/// for reads of MSRs 0 to 1FFF, reads of C000_0000 to C000_1FFF, and writes of the same two ranges.
/// A bit that is 1 makes the access exit; MSRs outside both ranges always exit.
///
/// The x2APIC range, 800 to 8FF, is this crate's; the rest is the hypervisor's.
///
/// Words are atomic so that a shared reference suffices; all accesses are relaxed. The processor
/// looks at the bitmap while the guest runs, so change it between exit and entry of its vCPU, on
/// the CPU that enters.
#[repr(C, align(4096))]
pub struct MsrBitmap {
    words: [AtomicU64; 512],
}

const_assert_eq!(size_of::<MsrBitmap>(), 4096);
const_assert_eq!(align_of::<MsrBitmap>(), 4096);

/// Words of the bitmap for reads of MSRs 800 to 8FF.
const X2APIC_READS: usize = 0x800 / 64;
/// Words of the bitmap for writes of MSRs 800 to 8FF.
const X2APIC_WRITES: usize = 256 + 0x800 / 64;

impl MsrBitmap {
    /// A bitmap with which every access exits.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [const { AtomicU64::new(u64::MAX) }; 512] }
    }

    /// Makes every access to MSRs 800 to 8FF exit. Others stay as they are.
    pub fn intercept_all_x2apic(&self) {
        self.allow(NOTHING);
    }

    /// Lets those accesses to MSRs 800 to 8FF through that the processor virtualizes rightly with
    /// `features` while the guest's APIC is in `mode`, and makes all others exit.
    ///
    /// With "virtualize x2APIC mode" off, an access let through reaches the physical APIC. With it
    /// on, the same goes for each write the processor does not know, while with APIC-register
    /// virtualization a read of any of the 256 gives what the page holds there, be there a register
    /// or not (SDM Vol. 3C 29.5). So nothing is let through but what is listed here:
    ///
    /// * reads of registers whose value is in the page, with APIC-register virtualization (TPR
    ///   without it). Not CMCI, which only some processors have: the emulated read knows;
    ///   not the current count, which is in no page; PPR only with virtual-interrupt delivery,
    ///   because without it the page's PPR is stale once the guest has changed TPR by itself;
    /// * writes of TPR; of EOI and SELF IPI with virtual-interrupt delivery; of ICR with IPI
    ///   virtualization.
    pub fn apply(&self, features: Features, mode: Mode) {
        self.allow(allowed(features, mode));
    }

    /// Whether a read of `msr` exits.
    #[must_use]
    pub fn intercepts_read(&self, msr: u32) -> bool {
        place(msr).is_none_or(|(word, bit)| self.load(word) & bit != 0)
    }

    /// Whether a write of `msr` exits.
    #[must_use]
    pub fn intercepts_write(&self, msr: u32) -> bool {
        place(msr).is_none_or(|(word, bit)| self.load(word + 256) & bit != 0)
    }

    /// Makes reads of `msr` exit, or lets them through. Returns whether it could: an MSR outside
    /// the bitmap's ranges always exits, and one of the x2APIC range is not for the hypervisor.
    pub fn intercept_read(&self, msr: u32, intercept: bool) -> bool {
        self.intercept(msr, 0, intercept)
    }

    /// Makes writes of `msr` exit, or lets them through, as
    /// [`intercept_read`](Self::intercept_read).
    pub fn intercept_write(&self, msr: u32, intercept: bool) -> bool {
        self.intercept(msr, 256, intercept)
    }

    /// The words as the processor reads them.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 512] {
        &self.words
    }

    fn allow(&self, allowed: Allowed) {
        for (index, (reads, writes)) in allowed.reads.into_iter().zip(allowed.writes).enumerate() {
            self.words[X2APIC_READS + index].store(!reads, Ordering::Relaxed);
            self.words[X2APIC_WRITES + index].store(!writes, Ordering::Relaxed);
        }
    }

    fn intercept(&self, msr: u32, base: usize, intercept: bool) -> bool {
        let Some((word, bit)) = place(msr) else { return false };
        let Some(word) = self.words.get(word + base) else { return false };
        if msr >> 8 == 8 {
            return false;
        }
        if intercept {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        true
    }

    fn load(&self, word: usize) -> u64 {
        self.words.get(word).map_or(u64::MAX, |word| word.load(Ordering::Relaxed))
    }
}

impl Default for MsrBitmap {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for MsrBitmap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let x2apic = |first| [0, 1, 2, 3].map(|index| !self.load(first + index));
        let allowed = Allowed { reads: x2apic(X2APIC_READS), writes: x2apic(X2APIC_WRITES) };
        f.debug_struct("MsrBitmap").field("x2apic", &allowed).finish_non_exhaustive()
    }
}

/// The accesses to MSRs 800 to 8FF that do not exit: bit `n % 64` of word `n / 64` is 800 + `n`.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    reads: [u64; 4],
    writes: [u64; 4],
}

const NOTHING: Allowed = Allowed { reads: [0; 4], writes: [0; 4] };

/// With APIC-register virtualization: ID, version, TPR, LDR, SVR, ISR, TMR and IRR, ESR, ICR, the
/// six LVT entries that every processor has, initial count, divide configuration.
const REGISTER_READS: [u64; 4] = msrs(&[
    (0x02, 0x03),
    (0x08, 0x08),
    (0x0d, 0x0d),
    (0x0f, 0x28),
    (0x30, 0x30),
    (0x32, 0x38),
    (0x3e, 0x3e),
]);
const TPR: [u64; 4] = msrs(&[(0x08, 0x08)]);
const PPR: [u64; 4] = msrs(&[(0x0a, 0x0a)]);
const EOI_AND_SELF_IPI: [u64; 4] = msrs(&[(0x0b, 0x0b), (0x3f, 0x3f)]);
const ICR: [u64; 4] = msrs(&[(0x30, 0x30)]);

fn allowed(features: Features, mode: Mode) -> Allowed {
    let mut allowed = NOTHING;
    // Without the control, every access let through would be the physical APIC's.
    if !features.contains(Feature::X2Apic) || !matches!(mode, Mode::X2Apic) {
        return allowed;
    }
    allowed.reads = TPR;
    allowed.writes = TPR;
    if features.contains(Feature::RegisterVirtualization) {
        allowed.reads = REGISTER_READS;
    }
    if features.contains(Feature::VirtualInterruptDelivery) {
        allowed.writes = union(allowed.writes, EOI_AND_SELF_IPI);
        if features.contains(Feature::RegisterVirtualization) {
            allowed.reads = union(allowed.reads, PPR);
        }
    }
    if features.contains(Feature::IpiVirtualization) {
        allowed.writes = union(allowed.writes, ICR);
    }
    allowed
}

/// The set of the MSRs in these ranges, given by first and last, less 800.
const fn msrs(ranges: &[(u8, u8)]) -> [u64; 4] {
    let mut set = [0; 4];
    let mut range = 0;
    while range < ranges.len() {
        let (first, last) = ranges[range];
        let mut msr = first;
        while msr <= last {
            set[(msr >> 6) as usize] |= 1 << (msr & 63);
            msr += 1;
        }
        range += 1;
    }
    set
}

const fn union(a: [u64; 4], b: [u64; 4]) -> [u64; 4] {
    [a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]]
}

/// Word and bit for reads of `msr`; those for writes are 256 words on.
const fn place(msr: u32) -> Option<(usize, u64)> {
    let word = match msr {
        0..0x2000 => msr / 64,
        0xc000_0000..0xc000_2000 => 128 + (msr & 0x1fff) / 64,
        _ => return None,
    };
    Some((word as usize, 1 << (msr % 64)))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;
    use crate::machines::every_set;

    const MODES: [Mode; 3] = [Mode::Disabled, Mode::XApic, Mode::X2Apic];

    /// What may go unintercepted, register by register: name, MSR, read, write.
    /// `a`: with APIC-register virtualization; `v`: and with virtual-interrupt delivery; `d`: with
    /// virtual-interrupt delivery; `i`: with IPI virtualization; `+`: always; `-`: never.
    const TABLE: &[(&str, u32, char, char)] = &[
        ("ID", 0x802, 'a', '-'),
        ("version", 0x803, 'a', '-'),
        ("TPR", 0x808, '+', '+'),
        ("APR", 0x809, '-', '-'),
        ("PPR", 0x80a, 'v', '-'),
        ("EOI", 0x80b, '-', 'd'),
        ("RRD", 0x80c, '-', '-'),
        ("LDR", 0x80d, 'a', '-'),
        ("DFR", 0x80e, '-', '-'),
        ("SVR", 0x80f, 'a', '-'),
        ("ESR", 0x828, 'a', '-'),
        ("CMCI", 0x82f, '-', '-'),
        ("ICR", 0x830, 'a', 'i'),
        ("ICR high", 0x831, '-', '-'),
        ("LVT timer", 0x832, 'a', '-'),
        ("LVT thermal", 0x833, 'a', '-'),
        ("LVT performance", 0x834, 'a', '-'),
        ("LINT0", 0x835, 'a', '-'),
        ("LINT1", 0x836, 'a', '-'),
        ("LVT error", 0x837, 'a', '-'),
        ("initial count", 0x838, 'a', '-'),
        ("current count", 0x839, '-', '-'),
        ("divide configuration", 0x83e, 'a', '-'),
        ("SELF IPI", 0x83f, '-', 'd'),
    ];

    fn expected(msr: u32, features: Features, mode: Mode) -> (bool, bool) {
        if mode != Mode::X2Apic || !features.contains(Feature::X2Apic) {
            return (false, false);
        }
        let registers = features.contains(Feature::RegisterVirtualization);
        let delivery = features.contains(Feature::VirtualInterruptDelivery);
        let holds = |when| match when {
            '+' => true,
            'a' => registers,
            'v' => registers && delivery,
            'd' => delivery,
            'i' => features.contains(Feature::IpiVirtualization),
            _ => false,
        };
        if (0x810..=0x827).contains(&msr) {
            return (registers, false); // ISR, TMR, IRR
        }
        let row = TABLE.iter().find(|row| row.1 == msr);
        row.map_or((false, false), |row| (holds(row.2), holds(row.3)))
    }

    #[test]
    fn every_msr_with_every_set_of_features_in_every_mode() {
        let bitmap = MsrBitmap::new();
        let mut allowed = 0;
        for features in every_set() {
            for mode in MODES {
                bitmap.apply(features, mode);
                for msr in 0x800..0x900 {
                    let found = (!bitmap.intercepts_read(msr), !bitmap.intercepts_write(msr));
                    let expected = expected(msr, features, mode);
                    assert_eq!(found, expected, "{msr:#x} {mode:?} {features:?}");
                    allowed += usize::from(found.0) + usize::from(found.1);
                }
            }
        }
        assert!(allowed > 0);
    }

    /// The count of what is let through at the full level, so that a wrong table shows as well:
    /// 39 registers to read, 4 to write.
    #[test]
    fn counts_at_the_full_level() {
        let bitmap = MsrBitmap::new();
        bitmap.apply(Feature::ALL.into_iter().collect(), Mode::X2Apic);
        let reads = (0x800..0x900).filter(|msr| !bitmap.intercepts_read(*msr)).count();
        let writes = (0x800..0x900).filter(|msr| !bitmap.intercepts_write(*msr)).count();
        assert_eq!((reads, writes), (2 + 1 + 1 + 1 + 1 + 24 + 1 + 1 + 6 + 1 + 1, 4));
    }

    /// Which bytes of the page the processor looks at (SDM Vol. 3C 24.6.9), worked by hand.
    #[test]
    fn bits_stand_where_the_processor_looks() {
        let bitmap = MsrBitmap::new();
        let byte = |offset: usize| {
            let word = bitmap.words()[offset / 8].load(Ordering::Relaxed);
            word.to_le_bytes()[offset % 8]
        };
        bitmap.apply(Features::NONE.with(Feature::X2Apic), Mode::X2Apic);
        assert_eq!((byte(0x101), byte(0x901)), (0xfe, 0xfe), "TPR, 808");
        let all: Features = Feature::ALL.into_iter().collect();
        bitmap.apply(all, Mode::X2Apic);
        assert_eq!((byte(0x107), byte(0x907)), (0xbe, 0x7f), "838 to 83F");
        assert!(bitmap.intercept_read(0xc000_0080, false), "EFER");
        assert_eq!((byte(0x410), byte(0xc10)), (0xfe, 0xff));
        assert!(bitmap.intercept_write(0xc000_1fff, false));
        assert_eq!((byte(0x7ff), byte(0xfff)), (0xff, 0x7f));
        assert!(bitmap.intercept_write(0, false));
        assert_eq!((byte(0), byte(0x800)), (0xff, 0xfe));
    }

    #[test]
    fn the_rest_is_the_hypervisors() {
        let bitmap = MsrBitmap::new();
        for msr in [0x1b, 0x7ff, 0x900, 0x1fff, 0xc000_0080, 0xc000_1fff] {
            assert!(bitmap.intercept_read(msr, false) && bitmap.intercept_write(msr, false));
        }
        let snapshot = || bitmap.words().each_ref().map(|word| word.load(Ordering::Relaxed));
        let before = snapshot();
        bitmap.apply(Feature::ALL.into_iter().collect(), Mode::X2Apic);
        for (index, (old, new)) in before.iter().zip(snapshot()).enumerate() {
            let ours = (32..36).contains(&index) || (288..292).contains(&index);
            assert!(ours || *old == new, "word {index}");
        }
        bitmap.intercept_all_x2apic();
        assert_eq!(snapshot(), before);
        for msr in [0x800, 0x808, 0x8ff, 0x2000, 0xbfff_ffff, 0xc000_2000, u32::MAX] {
            assert!(!bitmap.intercept_read(msr, false) && !bitmap.intercept_write(msr, false));
            assert!(bitmap.intercepts_read(msr) && bitmap.intercepts_write(msr));
        }
        assert_eq!(snapshot(), before);
        assert!(bitmap.intercept_read(0x1b, true) && bitmap.intercepts_read(0x1b));
        assert!(!bitmap.intercepts_write(0x1b));
    }

    #[test]
    fn debug_shows_what_is_let_through() {
        let bitmap = MsrBitmap::default();
        bitmap.apply(Features::NONE.with(Feature::X2Apic), Mode::X2Apic);
        assert!(format!("{bitmap:?}").contains("reads: [256, 0, 0, 0]"));
    }
}
