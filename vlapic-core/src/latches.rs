//! Events that wait for the vCPU and have no place in the page.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::inbox::{Inbox, Notify};
use crate::slot::Slot;

/// Something the vCPU has to do that is not a vector in IRR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "taking an event is a promise to carry it out"]
#[non_exhaustive]
pub enum Event {
    /// INIT arrived and the APIC has taken its INIT state: reset the processor's registers.
    ///
    /// A bootstrap processor then runs from the reset vector; another waits for its SIPI.
    Init {
        /// Whether the vCPU now waits for a SIPI.
        waits: bool,
    },
    /// Start in real mode at `page << 12` (CS selector `page << 8`, IP 0).
    Startup {
        /// The start page.
        page: u8,
    },
    /// Inject an SMI.
    Smi,
    /// Inject an NMI.
    Nmi,
    /// A message asked for an external interrupt: take the vector from the 8259.
    ExtInt,
}

/// The two local interrupt pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// LINT0: the 8259's INTR in virtual-wire mode.
    Lint0,
    /// LINT1: NMI.
    Lint1,
}

/// INIT, SIPI, NMI, SMI and ExtINT as latched, wait-for-SIPI, and what the pins did.
///
/// One word, so that a SIPI and the INIT before it are seen in order.
#[derive(Debug)]
pub(crate) struct Latches(AtomicU32);

const INIT: u32 = 1 << 0;
const NMI: u32 = 1 << 1;
const SMI: u32 = 1 << 2;
const EXTINT: u32 = 1 << 3;
const STARTUP: u32 = 1 << 4;
const WAITING: u32 = 1 << 5;
const PINS: u32 = (PIN_LEVEL | PIN_ROSE | PIN_REMOTE_IRR) * 3;
const EVENTS: u32 = INIT | NMI | SMI | EXTINT | STARTUP;
/// No owner has come since the slot was made.
const UNOWNED: u32 = 1 << 6;
const STARTUP_PAGE_SHIFT: u32 = 8;
const STARTUP_PAGE: u32 = 0xFF << STARTUP_PAGE_SHIFT;
const PIN_LEVEL: u32 = 1 << 16;
const PIN_ROSE: u32 = 1 << 18;
const PIN_REMOTE_IRR: u32 = 1 << 20;
/// Bits 31:24 count RESETs and INITs, so that a post that raced with one is noticed.
const LIFE: u32 = 1 << 24;

impl Latches {
    /// After RESET, for a vCPU that is not the BSP and that nobody owns yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(WAITING | UNOWNED))
    }

    /// An owner comes. `false` if it is not the first one since the slot was made; else it finds
    /// everything that was latched for it, but a bootstrap processor waits for no SIPI.
    pub(crate) fn adopt(&self, waiting: bool) -> bool {
        let drop = if waiting { UNOWNED } else { UNOWNED | WAITING | STARTUP | STARTUP_PAGE };
        let step = |word: u32| (word & UNOWNED != 0).then_some(word & !drop);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }

    /// RESET: nothing latched. Pins keep their level, which is the outside's.
    pub(crate) fn reset(&self, waiting: bool) {
        let keep = (PIN_LEVEL * 3) | (LIFE * 0xFF);
        self.update(|word| (word & keep).wrapping_add(LIFE) | if waiting { WAITING } else { 0 });
    }

    /// INIT taken: a SIPI that came after it stays, NMI and SMI are held (APM Vol. 2 16.10).
    pub(crate) fn init(&self, waiting: bool) {
        let mut drop = INIT | EXTINT | WAITING | ((PIN_ROSE | PIN_REMOTE_IRR) * 3);
        if !waiting {
            // A bootstrap processor ignores the SIPI that came with its INIT.
            drop |= STARTUP | STARTUP_PAGE;
        }
        self.update(|word| (word & !drop).wrapping_add(LIFE) | if waiting { WAITING } else { 0 });
    }

    /// The APIC's state is being thrown away without INIT (EN cleared).
    pub(crate) fn begin_life(&self) {
        self.update(|word| (word & !(PIN_REMOTE_IRR * 3)).wrapping_add(LIFE));
    }

    /// Everything but the life.
    pub(crate) fn bits(&self) -> u32 {
        self.load() & !(LIFE * 0xFF)
    }

    /// Latches as in `bits`, which [`Self::are_possible`], in a new life.
    pub(crate) fn restore(&self, bits: u32) {
        self.update(|word| (word & (LIFE * 0xFF)).wrapping_add(LIFE) | bits & !(LIFE * 0xFF));
    }

    /// Whether `bits` can come of [`Self::bits`]: no life, no unnamed bit, no SIPI that nobody waits
    /// for, and no start page without a SIPI.
    pub(crate) const fn are_possible(bits: u32) -> bool {
        let named = EVENTS | WAITING | STARTUP_PAGE | PINS;
        let startup = bits & STARTUP != 0;
        bits & !named == 0
            && (!startup || bits & (INIT | WAITING) != 0)
            && (startup || bits & STARTUP_PAGE == 0)
    }

    /// Which life between two RESETs or INITs this is, modulo 256.
    #[inline]
    pub(crate) fn life(&self) -> u32 {
        self.load() / LIFE
    }

    pub(crate) fn waiting(&self) -> bool {
        self.load() & WAITING != 0
    }

    /// One load: whether there is no event, no pin that did or does anything, and no waiting for a
    /// SIPI.
    #[inline]
    pub(crate) fn idle(&self) -> bool {
        self.load() & (EVENTS | WAITING | ((PIN_LEVEL | PIN_ROSE) * 3)) == 0
    }

    /// Whether a pin did or does anything at all.
    pub(crate) fn pins_idle(&self) -> bool {
        self.load() & ((PIN_LEVEL | PIN_ROSE) * 3) == 0
    }

    /// Whether [`Self::take`] would return something, and whether the vCPU waits for a SIPI.
    pub(crate) fn waiting_for(&self) -> (bool, bool) {
        let word = self.load();
        (first_event(word).is_some(), word & WAITING != 0)
    }

    pub(crate) fn latch_init(&self) -> bool {
        // A SIPI from before this INIT is void.
        self.update(|word| word & !(STARTUP | STARTUP_PAGE) | INIT);
        true
    }

    /// Only a vCPU that waits for a SIPI, or will once it has taken its INIT, accepts one.
    pub(crate) fn latch_startup(&self, page: u8) -> bool {
        let latch = |word: u32| {
            let accepts = word & (INIT | WAITING) != 0 && word & STARTUP == 0;
            accepts.then_some(word | STARTUP | u32::from(page) << STARTUP_PAGE_SHIFT)
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, latch).is_ok()
    }

    pub(crate) fn latch_nmi(&self) -> bool {
        self.0.fetch_or(NMI, Ordering::AcqRel);
        true
    }

    pub(crate) fn latch_smi(&self) -> bool {
        self.0.fetch_or(SMI, Ordering::AcqRel);
        true
    }

    pub(crate) fn latch_extint(&self) -> bool {
        self.0.fetch_or(EXTINT, Ordering::AcqRel);
        true
    }

    /// The first of INIT, SIPI, SMI, NMI, ExtINT; while waiting for a SIPI only INIT and SIPI.
    ///
    /// INIT stays latched until [`Self::init`]. Everything else is taken in one step with the
    /// decision, so a latch that comes in between is neither lost nor taken for an older one.
    pub(crate) fn take(&self) -> Option<Event> {
        let mut taken = None;
        let step = |word| {
            let (event, left) = first_event(word)?;
            taken = Some(event);
            Some(left)
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).ok()?;
        taken
    }

    pub(crate) fn set_pin(&self, pin: Pin, asserted: bool) -> bool {
        let shift = pin as u32;
        let old = if asserted {
            self.update(|word| {
                let rose = if word & PIN_LEVEL << shift == 0 { PIN_ROSE << shift } else { 0 };
                word | PIN_LEVEL << shift | rose
            })
        } else {
            self.update(|word| word & !(PIN_LEVEL << shift))
        };
        (old & PIN_LEVEL << shift != 0) != asserted
    }

    pub(crate) fn pin_level(&self, pin: Pin) -> bool {
        self.load() & PIN_LEVEL << pin as u32 != 0
    }

    pub(crate) fn take_pin_edge(&self, pin: Pin) -> bool {
        let bit = PIN_ROSE << pin as u32;
        self.load() & bit != 0 && self.0.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    pub(crate) fn remote_irr(&self, pin: Pin) -> bool {
        self.load() & PIN_REMOTE_IRR << pin as u32 != 0
    }

    #[inline]
    pub(crate) fn any_remote_irr(&self) -> bool {
        self.load() & (PIN_REMOTE_IRR * 3) != 0
    }

    pub(crate) fn set_remote_irr(&self, pin: Pin, set: bool) {
        let bit = PIN_REMOTE_IRR << pin as u32;
        if set {
            self.0.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    #[inline]
    fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn update(&self, change: impl Fn(u32) -> u32) -> u32 {
        match self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(change(word))) {
            Ok(old) | Err(old) => old,
        }
    }
}

/// What of a vCPU's events other formats keep outside the APIC's own record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latched {
    /// An INIT that was not taken yet.
    pub init: bool,
    /// A SIPI that was not taken yet, and its start page. Without `init` or `waits` it means nothing
    /// and is dropped.
    pub startup: Option<u8>,
    /// An NMI.
    pub nmi: bool,
    /// An SMI.
    pub smi: bool,
    /// An ExtINT message.
    pub extint: bool,
    /// The vCPU waits for its SIPI.
    pub waits: bool,
}

impl Latched {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        let startup =
            if bits & STARTUP == 0 { None } else { Some((bits >> STARTUP_PAGE_SHIFT) as u8) };
        Self {
            init: bits & INIT != 0,
            startup,
            nmi: bits & NMI != 0,
            smi: bits & SMI != 0,
            extint: bits & EXTINT != 0,
            waits: bits & WAITING != 0,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        let startup = match self.startup {
            Some(page) if self.init || self.waits => {
                STARTUP | u32::from(page) << STARTUP_PAGE_SHIFT
            }
            _ => 0,
        };
        let flags = [
            (self.init, INIT),
            (self.nmi, NMI),
            (self.smi, SMI),
            (self.extint, EXTINT),
            (self.waits, WAITING),
        ];
        flags.iter().fold(startup, |bits, &(set, bit)| if set { bits | bit } else { bits })
    }
}

impl Pin {
    /// This pin's remote IRR in a word of latches.
    pub(crate) const fn remote_irr_bit(self) -> u32 {
        PIN_REMOTE_IRR << self as u32
    }
}

/// The event that `word` holds first, and the word without it.
const fn first_event(word: u32) -> Option<(Event, u32)> {
    if word & INIT != 0 {
        return Some((Event::Init { waits: false }, word));
    }
    if word & WAITING != 0 {
        if word & STARTUP == 0 {
            return None;
        }
        let page = (word >> STARTUP_PAGE_SHIFT) as u8;
        return Some((Event::Startup { page }, word & !(STARTUP | STARTUP_PAGE | WAITING)));
    }
    if word & SMI != 0 {
        Some((Event::Smi, word & !SMI))
    } else if word & NMI != 0 {
        Some((Event::Nmi, word & !NMI))
    } else if word & EXTINT != 0 {
        Some((Event::ExtInt, word & !EXTINT))
    } else {
        None
    }
}

impl<I: Inbox> Slot<'_, I> {
    /// Drives a local interrupt pin; any CPU may call.
    ///
    /// `asserted` is the pin's meaning, not its voltage: the polarity bit of the entry is for
    /// wiring only. The owner delivers in its entry work, by what the entry says then.
    pub fn set_lint(&self, pin: Pin, asserted: bool) -> Notify {
        if self.latches.set_pin(pin, asserted) && asserted {
            self.inbox().attention()
        } else {
            Notify::None
        }
    }
}
