//! The upcall story, told on the silicon model.

use std::fmt;
use std::sync::atomic::Ordering;

use vlapic_core::{Bank, Mode, Register};

use crate::hypervisor::{Config, Hypervisor, Level, run};

/// The upcall vector of the story.
const VECTOR: u8 = 0xf3;
/// How long, in TSC ticks, an owed upcall may wait for a look at SVR.
const RECHECK: u64 = 10_000;

/// The story in every way of writing SVR that a mode has, told of the driver and of the contrast.
///
/// WRMSR of SVR has no APIC-write exit, so in x2APIC mode that way does not exist.
#[must_use]
pub fn upcall_story() -> Vec<UpcallRow> {
    let mut rows = Vec::new();
    for mode in [Mode::XApic, Mode::X2Apic] {
        for way in [Way::Emulated, Way::ApicWrite, Way::Silent] {
            if (way, mode) != (Way::ApicWrite, Mode::X2Apic) {
                rows.extend([Who::Driver, Who::Contrast].map(|who| tell(way, who, mode)));
            }
        }
    }
    rows
}

/// How a guest's write to SVR takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It exits and the hypervisor does it: APIC-access exit, or WRMSR exit.
    Emulated,
    /// The processor stores the value, then an APIC-write exit tells of it.
    ApicWrite,
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

/// vCPU 1 enables its APIC after an event was raised for it; a second event comes later.
fn tell(way: Way, who: Who, mode: Mode) -> UpcallRow {
    let level = if way == Way::Emulated { Level::ApicAccess } else { Level::Posted };
    let mut config = Config::new(level).vcpus(2).mode(mode);
    if way == Way::Silent {
        config = config.silent(RECHECK);
    }
    run(config, |hypervisor| {
        if who == Who::Contrast {
            hypervisor.use_contrast();
        }
        hypervisor.register_upcall(1, VECTOR);
        hypervisor.notify_upcall(1);
        let irr_clean = nothing_waits(hypervisor);
        let before = hypervisor.exits(1);

        // In the silent way the window is the page, whatever the mode; a plain store reaches it.
        write_svr(hypervisor, way, 0x1ff);
        let mut seen = handle_upcalls(hypervisor);
        // Enabled once more: no upcall of its own.
        write_svr(hypervisor, way, 0x1fe);
        seen += handle_upcalls(hypervisor);
        hypervisor.notify_upcall(1);
        seen += handle_upcalls(hypervisor);

        let exits = hypervisor.exits(1) - before;
        UpcallRow { way, who, mode, irr_clean, expected: 2, seen, exits }
    })
}

fn write_svr(hypervisor: &mut Hypervisor<'_>, way: Way, value: u64) {
    if way == Way::Silent {
        hypervisor.store_silently(1, Register::Svr, value as u32);
    } else {
        hypervisor.write(1, Register::Svr, value);
    }
}

/// What Linux checks before it enables an APIC: nothing requested, nothing in service.
fn nothing_waits(hypervisor: &mut Hypervisor<'_>) -> bool {
    (0..8).map(Bank::new).all(|bank| {
        hypervisor.read(1, Register::Irr(bank)) == 0 && hypervisor.read(1, Register::Isr(bank)) == 0
    })
}

/// The guest runs for a while and handles its upcalls: EOI, then clear the byte. How many there were.
fn handle_upcalls(hypervisor: &mut Hypervisor<'_>) -> u64 {
    let mut seen = 0;
    for _ in 0..4 {
        hypervisor.advance(RECHECK as u32);
        while hypervisor.taken(1).len() as u64 > seen {
            seen += 1;
            hypervisor.eoi(1);
            hypervisor.storage().pending[1].store(0, Ordering::SeqCst);
        }
    }
    hypervisor.vcpu_mut(1).forget_taken();
    seen
}
