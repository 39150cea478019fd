//! The upcall story, told on the silicon models.

mod amd;
mod intel;

use std::fmt;

use vlapic_core::{Bank, Mode, Register};

use crate::steps::Subject;

/// The upcall vector of the story.
const VECTOR: u8 = 0xf3;
/// How long, in TSC ticks, an owed upcall may wait for a look at SVR.
const RECHECK: u64 = 10_000;

/// Whose processor the story is told on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// Intel's, with APICv.
    Apicv,
    /// AMD's, without AVIC.
    Svm,
    /// AMD's, with AVIC and x2AVIC.
    Avic,
}

impl Processor {
    /// By its name on a command line.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "apicv" => Some(Self::Apicv),
            "svm" => Some(Self::Svm),
            "avic" => Some(Self::Avic),
            _ => None,
        }
    }

    /// The ways of writing SVR that the processor has.
    ///
    /// With x2APIC the write is a WRMSR that the hypervisor intercepts, on either vendor's: there is no way in which the
    /// processor stores first and exits then.
    fn ways(self, mode: Mode) -> &'static [Way] {
        match (self, mode) {
            (Self::Avic, Mode::XApic) => &[Way::Trap, Way::Silent],
            (Self::Apicv, Mode::XApic) => &[Way::Emulated, Way::ApicWrite, Way::Silent],
            _ => &[Way::Emulated, Way::Silent],
        }
    }
}

/// The story in every way of writing SVR that `processor` has, in both modes, told of the driver and of the contrast.
#[must_use]
pub fn upcall_story(processor: Processor) -> Vec<UpcallRow> {
    let mut rows = Vec::new();
    for mode in [Mode::XApic, Mode::X2Apic] {
        for &way in processor.ways(mode) {
            rows.extend([Who::Driver, Who::Contrast].map(|who| match processor {
                Processor::Apicv => intel::tell(way, who, mode),
                Processor::Svm => amd::without_avic(way, who, mode),
                Processor::Avic => amd::with_avic(way, who, mode),
            }));
        }
    }
    rows
}

/// How a guest's write to SVR takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It exits and the hypervisor does it: APIC-access exit, nested page fault, or WRMSR exit.
    Emulated,
    /// The processor stores the value, then an APIC-write exit tells of it.
    ApicWrite,
    /// AVIC stores the value, then exit 402 tells of it.
    Trap,
    /// The value is in the page and nobody is told.
    Silent,
}

/// Whose upcalls they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The driver.
    Driver,
    /// The model that caches a flag.
    Contrast,
}

/// What a row of the story amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// One upcall for each event, none before the APIC was enabled.
    Right,
    /// The upcall was in IRR before the APIC was enabled.
    Stale,
    /// Fewer upcalls than events.
    Lost,
    /// More upcalls than events.
    Doubled,
}

/// One row; its [`Display`](fmt::Display) is the record that the bare-metal image prints for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpcallRow {
    /// How SVR was written.
    pub way: Way,
    /// By whom.
    pub who: Who,
    /// The mode of the guest's APIC.
    pub mode: Mode,
    /// The guest found IRR and ISR empty before it enabled its APIC.
    pub irr_clean: bool,
    /// How many events there were.
    pub expected: u64,
    /// How many upcalls the guest took.
    pub seen: u64,
    /// VM exits of the guest from the write of SVR on.
    pub exits: u64,
}

impl UpcallRow {
    /// What the row amounts to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.seen.cmp(&self.expected) {
            _ if !self.irr_clean => Verdict::Stale,
            std::cmp::Ordering::Less => Verdict::Lost,
            std::cmp::Ordering::Greater => Verdict::Doubled,
            std::cmp::Ordering::Equal => Verdict::Right,
        }
    }
}

impl fmt::Display for UpcallRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Emulated => "emulated",
            Way::ApicWrite => "apic-write",
            Way::Trap => "avic-trap",
            Way::Silent => "silent",
        };
        let who = match self.who {
            Who::Driver => "driver",
            Who::Contrast => "contrast",
        };
        let mode = if self.mode == Mode::X2Apic { "x2apic" } else { "xapic" };
        let clean = if self.irr_clean { "yes" } else { "no" };
        let result = match self.verdict() {
            Verdict::Right => "right",
            Verdict::Stale => "stale",
            Verdict::Lost => "lost",
            Verdict::Doubled => "doubled",
        };
        write!(f, "HIL-UPCALL way={way} who={who} mode={mode} irr_clean={clean}")?;
        let Self { expected, seen, exits, .. } = self;
        write!(f, " expected={expected} seen={seen} exits={exits} result={result}")
    }
}

/// A hypervisor as the story needs it. All of it is about vCPU 1.
trait Teller: Subject {
    /// Registers the upcall vector.
    fn register(&mut self);
    /// VM exits so far.
    fn exits(&self) -> u64;
    /// Reads a register.
    fn read(&mut self, register: Register) -> u32;
    /// Writes SVR.
    fn write_svr(&mut self, way: Way, value: u32);
    /// Ends the interrupt in service.
    fn eoi(&mut self);
    /// Begins a new list of vectors taken.
    fn forget_taken(&mut self);
}

/// vCPU 1 enables its APIC after an event was raised for it; a second event comes later.
fn tell(teller: &mut impl Teller, way: Way, who: Who, mode: Mode) -> UpcallRow {
    teller.register();
    teller.notify_upcall(1);
    let irr_clean = nothing_waits(teller);
    let before = teller.exits();

    teller.write_svr(way, 0x1ff);
    let mut seen = handle_upcalls(teller);
    // Enabled once more: no upcall of its own.
    teller.write_svr(way, 0x1fe);
    seen += handle_upcalls(teller);
    teller.notify_upcall(1);
    seen += handle_upcalls(teller);

    let exits = teller.exits() - before;
    UpcallRow { way, who, mode, irr_clean, expected: 2, seen, exits }
}

/// What Linux checks before it enables an APIC: nothing requested, nothing in service.
fn nothing_waits(teller: &mut impl Teller) -> bool {
    (0..8)
        .map(Bank::new)
        .all(|bank| teller.read(Register::Irr(bank)) == 0 && teller.read(Register::Isr(bank)) == 0)
}

/// The guest runs for a while and handles its upcalls: EOI, then clear the byte. How many there were.
fn handle_upcalls(teller: &mut impl Teller) -> u64 {
    let mut seen = 0;
    for _ in 0..4 {
        teller.advance(RECHECK as u32);
        while teller.seen(1).taken.len() as u64 > seen {
            seen += 1;
            teller.eoi();
            teller.clear_pending(1);
        }
    }
    teller.forget_taken();
    seen
}
