//! Every low word of ICR, written as a guest writes it.

use core::ops::Range;

use vlapic_core::{
    Address, ApicPage, DirectInbox, Effect, IA32_APIC_BASE, LocalApic, Mode, Profile, Slot, Vendor,
    Width,
};

use crate::manual::icr::{KEPT, To, Verdict, event_message, vector_message, verdict};

/// The four runs: each vendor in each mode.
pub const RUNS: [(Vendor, Mode); 4] = [
    (Vendor::Intel, Mode::XApic),
    (Vendor::Intel, Mode::X2Apic),
    (Vendor::Amd, Mode::XApic),
    (Vendor::Amd, Mode::X2Apic),
];

/// Values of bits 31:8; the space of a run is `0..UPPER`, 256 words each.
pub const UPPER: u32 = 1 << 24;

/// The first word that does something else than the manual says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The model and mode.
    pub run: (Vendor, Mode),
    /// The word written.
    pub low: u32,
    /// The destination that went with it.
    pub destination: u32,
    /// What is wrong.
    pub what: &'static str,
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (vendor, mode) = self.run;
        let Self { low, destination, what, .. } = self;
        write!(f, "{vendor:?} {mode:?} ICR {low:#010x} destination {destination:#x}: {what}")
    }
}

/// Writes every word whose bits 31:8 are in `upper`.
///
/// # Errors
/// The first mismatch.
///
/// # Panics
/// If an APIC after RESET cannot be put into the mode.
pub fn run(vendor: Vendor, mode: Mode, upper: Range<u32>) -> Result<(), Mismatch> {
    let page = ApicPage::new();
    let profile = match vendor {
        Vendor::Intel => Profile::intel(),
        Vendor::Amd => Profile::amd(),
    };
    let slot = Slot::new(&page, 3, profile, DirectInbox);
    let mut apic = LocalApic::new(&slot, true);
    if mode == Mode::X2Apic {
        let base = slot.base().bits() | 1 << 10;
        assert!(apic.write_msr(IA32_APIC_BASE, base, 0).is_ok(), "x2APIC mode");
    }
    let mut sender = Sender { apic, page: &page, mode };
    assert!(sender.write(0x0F0, 0x1FF).is_some(), "SVR");
    for upper in upper {
        // Each message of 256 has its own destination, a broadcast now and then.
        let destination = match upper.wrapping_mul(0x9E37_79B9).rotate_left(11) {
            spread if spread & 7 == 0 => u32::MAX,
            spread => spread,
        };
        sender.words(upper << 8, destination, vendor).map_err(|(low, what)| Mismatch {
            run: (vendor, mode),
            low,
            destination,
            what,
        })?;
    }
    Ok(())
}

struct Sender<'a> {
    apic: LocalApic<'a, DirectInbox>,
    page: &'a ApicPage,
    mode: Mode,
}

const ESR: u16 = 0x280;
const IRR: u16 = 0x200;
const TMR: u16 = 0x180;

impl Sender<'_> {
    /// All 256 vectors of one word.
    fn words(
        &mut self,
        low: u32,
        destination: u32,
        vendor: Vendor,
    ) -> Result<(), (u32, &'static str)> {
        let address = match self.mode {
            Mode::X2Apic => Address::Wide(destination),
            _ => {
                if self.write(0x310, destination) != Some(Effect::None) {
                    return Err((low, "the high half has an effect"));
                }
                Address::Narrow((destination >> 24) as u8)
            }
        };
        let verdict = verdict(low, self.mode, vendor);
        for vector in 0..=255u8 {
            let word = low | u32::from(vector);
            self.word(word, destination, vector, verdict, address).map_err(|what| (word, what))?;
            if vector < 16 {
                let sends = matches!(verdict, Verdict::Vector { .. });
                self.errors(if sends { 0x20 } else { 0 }).map_err(|what| (word, what))?;
            }
        }
        let last = low | 0xFF;
        self.errors(0).map_err(|what| (last, what))?;
        let quiet = (0..8).all(|bank| self.page.load(IRR + 0x10 * bank) == 0);
        if quiet { Ok(()) } else { Err((last, "a vector got into IRR")) }
    }

    #[inline]
    fn word(
        &mut self,
        word: u32,
        destination: u32,
        vector: u8,
        verdict: Verdict,
        address: Address,
    ) -> Result<(), &'static str> {
        let before = self.page.load(0x300);
        let effect = match self.mode {
            Mode::X2Apic => {
                let value = u64::from(destination) << 32 | u64::from(word);
                self.apic.write_msr(0x830, value, 0).ok()
            }
            _ => Some(self.apic.write_mmio(0x300, Width::Dword, u64::from(word), 0)),
        };
        let expected = match verdict {
            Verdict::Fault => None,
            Verdict::Nothing => Some(Effect::None),
            Verdict::Vector { .. } if vector < 16 => Some(Effect::None),
            Verdict::Vector { level, to: To::Itself, .. } => {
                self.requested(vector, level)?;
                Some(Effect::None)
            }
            Verdict::Vector { lowest, level, to } => {
                Some(Effect::Ipi(vector_message(vector, lowest, level, to, address)))
            }
            Verdict::Event(event, to) => {
                Some(Effect::Ipi(event_message(event, vector, to, address)))
            }
        };
        if effect != expected {
            return Err("another effect");
        }
        let kept = if verdict == Verdict::Fault { before } else { word & KEPT };
        if self.page.load(0x300) == kept { Ok(()) } else { Err("another word is kept") }
    }

    /// A self-IPI has set its bits, and is taken away again.
    #[inline]
    fn requested(&self, vector: u8, level: bool) -> Result<(), &'static str> {
        let offset = u16::from(vector >> 5) << 4;
        let bit = 1u32 << (vector & 31);
        if self.page.load(IRR + offset) != bit {
            return Err("the self-IPI is not what IRR holds");
        }
        self.page.store(IRR + offset, 0);
        let tmr = self.page.load(TMR + offset) & bit != 0;
        if tmr == level { Ok(()) } else { Err("the wrong trigger mode") }
    }

    /// What ESR says since it was last asked.
    fn errors(&mut self, expected: u32) -> Result<(), &'static str> {
        let latched = self.write(ESR, 0) == Some(Effect::None);
        if latched && self.page.load(ESR) == expected { Ok(()) } else { Err("another ESR") }
    }

    /// A guest's write, by the way its mode has; `None` is #GP.
    fn write(&mut self, offset: u16, value: u32) -> Option<Effect> {
        match self.mode {
            Mode::X2Apic => {
                let msr = 0x800 + u32::from(offset >> 4);
                self.apic.write_msr(msr, u64::from(value), 0).ok()
            }
            _ => Some(self.apic.write_mmio(offset, Width::Dword, u64::from(value), 0)),
        }
    }
}
