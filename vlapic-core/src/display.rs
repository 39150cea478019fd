//! The APIC as text, laid out like the `info lapic` of QEMU's monitor.

use core::fmt::{Formatter, Result};

use crate::base::Mode;
use crate::icr::Icr;
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::lvt::{LvtDelivery, TimerMode};
use crate::register::{LvtEntry, Register};
use crate::slot::Slot;
use crate::timer::divide_shift;
use crate::vector::Trigger;
use crate::vectors::VectorSet;

/// A local APIC to be written with `{}`: see [`Slot::display`].
///
/// It reads the page as it writes, so on a running vCPU lines may be of different moments. It
/// shows what the APIC makes of the page: LVT entries as they take effect, PPR computed.
#[derive(Debug)]
pub struct Display<'a, I: Inbox> {
    slot: &'a Slot<'a, I>,
    current_count: Option<u32>,
}

impl<I: Inbox> Slot<'_, I> {
    /// The APIC as text, one register or group of registers a line. Any CPU may call. The timer's
    /// current count is the owner's to know: [`LocalApic::display`].
    #[must_use]
    pub fn display(&self) -> Display<'_, I> {
        Display { slot: self, current_count: None }
    }
}

impl<I: Inbox> LocalApic<'_, I> {
    /// As [`Slot::display`], with the timer's current count at `now` (guest TSC ticks).
    #[must_use]
    pub fn display(&self, now: u64) -> Display<'_, I> {
        let count = self.timer.current_count(now, self.timer_settings());
        Display { slot: self.slot, current_count: Some(count) }
    }
}

impl<I: Inbox> core::fmt::Display for Display<'_, I> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let page = self.slot.page();
        let id = self.slot.x2apic_id();
        let mode = match self.slot.mode() {
            Mode::Disabled => "disabled",
            Mode::XApic => "xAPIC",
            Mode::X2Apic => "x2APIC",
        };
        writeln!(f, "local APIC {id}, {mode}, base {:#x}", self.slot.base().address())?;
        for (name, entry) in NAMES {
            if entry != LvtEntry::Cmci || self.slot.profile().cmci() {
                self.write_lvt(f, name, entry)?;
            }
        }
        self.write_timer(f)?;
        self.write_svr(f)?;
        self.write_icr(f)?;
        writeln!(f, "ESR      {:#010x}", page.read(Register::Esr))?;
        self.write_set(f, "ISR", page.isr())?;
        self.write_set(f, "IRR", page.irr())?;
        writeln!(
            f,
            "APR {:#04x} TPR {:#04x} DFR {:#04x} LDR {:#04x} PPR {:#04x}",
            self.slot.arbitration_priority(),
            page.read(Register::Tpr) & 0xFF,
            page.read(Register::Dfr) >> 28,
            match self.slot.mode() {
                Mode::X2Apic => page.read(Register::Ldr),
                _ => page.read(Register::Ldr) >> 24,
            },
            self.slot.processor_priority(),
        )
    }
}

const NAMES: [(&str, LvtEntry); 7] = [
    ("LVT0", LvtEntry::Lint0),
    ("LVT1", LvtEntry::Lint1),
    ("LVTPC", LvtEntry::Performance),
    ("LVTERR", LvtEntry::Error),
    ("LVTTHMR", LvtEntry::Thermal),
    ("LVTCMCI", LvtEntry::Cmci),
    ("LVTT", LvtEntry::Timer),
];

impl<I: Inbox> Display<'_, I> {
    fn write_lvt(&self, f: &mut Formatter<'_>, name: &str, entry: LvtEntry) -> Result {
        let lvt = self.slot.lvt(entry);
        let delivery = match lvt.delivery() {
            LvtDelivery::Fixed => "Fixed",
            LvtDelivery::Smi => "SMI",
            LvtDelivery::Nmi => "NMI",
            LvtDelivery::Init => "INIT",
            LvtDelivery::ExtInt => "ExtINT",
            LvtDelivery::Reserved => "reserved",
        };
        let mode = match lvt.timer_mode() {
            _ if entry != LvtEntry::Timer => "",
            TimerMode::OneShot => "one-shot",
            TimerMode::Periodic => "periodic",
            TimerMode::TscDeadline => "tsc-deadline",
            TimerMode::Reserved => "reserved",
        };
        write!(
            f,
            "{name:<8} {:#010x} {} {} {:<6} {mode:<12} {delivery:<6}",
            lvt.bits(),
            if lvt.active_low() { "active-lo" } else { "active-hi" },
            trigger_name(lvt.trigger()),
            if lvt.masked() { "masked" } else { "" },
        )?;
        if lvt.delivery() == LvtDelivery::Fixed {
            write!(f, " (vec {})", lvt.vector())?;
        }
        writeln!(f)
    }

    fn write_timer(&self, f: &mut Formatter<'_>) -> Result {
        let page = self.slot.page();
        let divide = page.read(Register::DivideConfiguration) & 0xB;
        write!(
            f,
            "Timer    DCR={divide:#x} (divide by {}) initial_count = {}",
            1u32 << divide_shift(divide),
            page.read(Register::InitialCount),
        )?;
        if let Some(count) = self.current_count {
            write!(f, " current_count = {count}")?;
        }
        writeln!(f)
    }

    fn write_svr(&self, f: &mut Formatter<'_>) -> Result {
        let svr = self.slot.page().svr();
        let profile = self.slot.profile();
        write!(
            f,
            "SPIV     {:#010x} APIC {}, focus={}, spurious vec {}",
            svr.bits(),
            if svr.software_enabled() { "enabled" } else { "disabled" },
            if profile.focus_check() && !svr.focus_check_disabled() { "on" } else { "off" },
            svr.spurious_vector(),
        )?;
        if profile.eoi_suppression() && svr.eoi_broadcast_suppressed() {
            f.write_str(", EOI broadcast suppressed")?;
        }
        writeln!(f)
    }

    fn write_icr(&self, f: &mut Formatter<'_>) -> Result {
        let icr = self.slot.icr();
        let delivery = ["Fixed", "LowPri", "SMI", "reserved", "NMI", "INIT", "SIPI", "ExtINT"];
        let shorthand = ["no-shorthand", "self", "all", "all-self"];
        writeln!(
            f,
            "ICR      {:#010x} {} {} {} {} {} (vec {})",
            icr.low(),
            delivery[usize::from(icr.delivery_mode() & 7)],
            if icr.logical() { "logical" } else { "physical" },
            trigger_name(icr.trigger()).trim_end(),
            if icr.assert() { "assert" } else { "de-assert" },
            shorthand[usize::from(icr.shorthand() & 3)],
            icr.vector(),
        )?;
        self.write_icr_destination(f, icr)
    }

    fn write_icr_destination(&self, f: &mut Formatter<'_>, icr: Icr) -> Result {
        write!(f, "ICR2     {:#010x}", icr.high())?;
        let (id, kind) = match self.slot.mode() {
            Mode::X2Apic => (icr.high(), "x2APIC"),
            _ => (icr.high() >> 24, "xAPIC"),
        };
        match (icr.shorthand(), icr.logical()) {
            (0, false) => writeln!(f, " cpu {id} ({kind} ID)"),
            (0, true) => writeln!(f, " mask {id:#x} ({kind})"),
            _ => writeln!(f),
        }
    }

    fn write_set(&self, f: &mut Formatter<'_>, name: &str, set: VectorSet<'_>) -> Result {
        write!(f, "{name:<8}")?;
        if set.is_empty() {
            f.write_str(" (none)")?;
        }
        let tmr = self.slot.page().tmr();
        for vector in set.iter() {
            write!(f, " {}", vector.get())?;
            if tmr.contains(vector) {
                f.write_str(" (level)")?;
            }
        }
        writeln!(f)
    }
}

const fn trigger_name(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Edge => "edge ",
        Trigger::Level => "level",
    }
}

#[cfg(test)]
mod tests;
