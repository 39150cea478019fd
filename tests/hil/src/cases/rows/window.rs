//! xAPIC mode: the register window, offset by offset (SDM Vol. 3C 29.4.2 and 29.4.3).

use super::access::{self, Fate};
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Mode, Setting, check, equal};
use crate::guest::apic;
use crate::hypervisor::Level;
use crate::vmx::Reason;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-window-read", cpus: 1, applies, run: |at| probe::run(at, read_all) },
    Case { name: "rows-window-write", cpus: 1, applies, run: |at| probe::run(at, write_all) },
    Case { name: "rows-window-width", cpus: 1, applies, run: |at| probe::run(at, widths) },
];

fn applies(setting: Setting) -> bool {
    setting.mode == Mode::XApic
}

/// Offsets, by first and last.
type Ranges = &'static [(u16, u16)];

/// Registers whose reads come from the page with APIC-register virtualization.
const READ: Ranges = &[
    (0x020, 0x030),
    (0x080, 0x080),
    (0x0b0, 0x0b0),
    (0x0d0, 0x0f0),
    (0x100, 0x280),
    (0x300, 0x310),
    (0x320, 0x380),
    (0x3e0, 0x3e0),
];

/// Offsets where this APIC, which has no CMCI entry, has no register: an access is an error.
const RESERVED: Ranges =
    &[(0x000, 0x010), (0x040, 0x070), (0x290, 0x2f0), (0x3a0, 0x3d0), (0x3f0, 0xff0)];

const ESR: u16 = 0x280;
const ICR_HIGH: u16 = 0x310;
/// Bit 7 of ESR.
const ILLEGAL_REGISTER: u64 = 0x80;

fn within(ranges: Ranges, offset: u16) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&offset))
}

fn offsets() -> impl Iterator<Item = u16> {
    (0..0x1000).step_by(16)
}

/// An access that does not get through.
fn refused(level: Level, offset: u16, write: bool) -> Fate {
    match level {
        Level::TprShadow => Fate::Missing { address: apic::DEFAULT_BASE + u64::from(offset) },
        _ => {
            let qualification = u64::from(offset) | u64::from(write) << 12;
            Fate::Refused { reason: Reason::ApicAccess, qualification }
        }
    }
}

fn read_fate(level: Level, offset: u16) -> Fate {
    let virtualized = match level {
        Level::TprShadow => false,
        Level::ApicAccess => offset == apic::TPR,
        _ => within(READ, offset),
    };
    if virtualized { Fate::Silent } else { refused(level, offset, false) }
}

fn read_all(probe: &Probe) -> Result<(), Failure> {
    for offset in offsets() {
        probe.at(offset);
        let before = probe.word(offset);
        access::store(ESR, 0);
        let read = access::load(offset);
        read.must(read_fate(probe.level(), offset))?;
        let value = read.value()?;
        if within(READ, offset) && offset != apic::EOI {
            equal("value, that of the page", value, before)?;
        }
        if within(RESERVED, offset) {
            equal("value of no register", value, 0u64)?;
        }
        equal("page after a read", probe.word(offset), before)?;
        access::store(ESR, 0);
        let error = if within(RESERVED, offset) { ILLEGAL_REGISTER } else { 0 };
        equal("ESR", access::load(ESR).value()?, error)?;
    }
    Ok(())
}

/// A register that can be written: what is written, and what the guest reads afterwards.
struct Written {
    offset: u16,
    value: u32,
    after: u32,
}

const fn written(offset: u16, value: u32, after: u32) -> Written {
    Written { offset, value, after }
}

/// From the register figures of SDM Vol. 3A chapter 10. The ICR sends to all but self, where nobody is; CR 3E0 divides by 1.
const WRITES: &[Written] = &[
    written(0x020, 0xff00_0000, 0x0000_0000),
    written(0x080, 0x0000_00ff, 0x0000_00ff),
    written(0x080, 0xffff_ff00, 0x0000_0000),
    written(0x0d0, 0x1234_5678, 0x1200_0000),
    written(0x0e0, 0x0000_0000, 0x0fff_ffff),
    written(0x0e0, 0xffff_ffff, 0xffff_ffff),
    written(0x0f0, 0xffff_ffff, 0x0000_11ff),
    written(0x0f0, 0x0000_01ff, 0x0000_01ff),
    written(0x280, 0x0000_0055, 0x0000_0000),
    written(0x300, 0x000c_40aa, 0x000c_40aa),
    written(0x310, 0x1234_5678, 0x1200_0000),
    written(0x320, 0xfffb_ffff, 0x0003_00ff),
    written(0x330, 0xffff_ffff, 0x0001_07ff),
    written(0x340, 0xffff_ffff, 0x0001_07ff),
    written(0x350, 0xffff_ffff, 0x0001_a7ff),
    written(0x360, 0xffff_ffff, 0x0001_a7ff),
    written(0x370, 0xffff_ffff, 0x0001_00ff),
    written(0x380, 0x8765_4321, 0x8765_4321),
    written(0x380, 0x0000_0000, 0x0000_0000),
    written(0x3e0, 0xffff_ffff, 0x0000_000b),
];

fn write_fate(level: Level, offset: u16) -> Fate {
    let done = Fate::Trapped { reason: Reason::ApicWrite, qualification: offset.into() };
    match (level, offset) {
        (Level::TprShadow, _) => refused(level, offset, true),
        (_, apic::TPR) => Fate::Silent,
        (Level::ApicAccess, _) => refused(level, offset, true),
        (_, ICR_HIGH) => Fate::Silent,
        (_, apic::EOI) if level.delivers() => Fate::Silent,
        (_, apic::EOI) => done,
        _ if WRITES.iter().any(|register| register.offset == offset) => done,
        _ => refused(level, offset, true),
    }
}

fn write_all(probe: &Probe) -> Result<(), Failure> {
    for register in WRITES {
        probe.at(register.offset);
        let before = probe.word(register.offset);
        let write = access::store(register.offset, register.value);
        let fate = write_fate(probe.level(), register.offset);
        write.must(fate)?;
        match (fate, write.exit) {
            (Fate::Trapped { .. }, Some(exit)) => {
                equal("page at the exit", exit.word, register.value)?;
            }
            (_, Some(exit)) => equal("page at the exit", exit.word, before)?,
            (_, None) => equal("page", probe.word(register.offset), register.after)?,
        }
        equal("read back", access::load(register.offset).value()?, register.after)?;
    }
    write_eoi(probe)?;
    let writable = |offset| WRITES.iter().any(|register| register.offset == offset);
    for offset in offsets().filter(|&offset| !writable(offset) && offset != apic::EOI) {
        probe.at(offset);
        let before = probe.word(offset);
        let write = access::store(offset, 0xffff_ffff);
        write.must(write_fate(probe.level(), offset))?;
        equal("exits", write.exits, 1u64)?;
        equal("page at the exit", write.exit.map_or(0, |exit| exit.word), before)?;
        equal("page after a refused write", probe.word(offset), before)?;
    }
    Ok(())
}

/// An EOI with nothing in service, and a value that EOI drops.
fn write_eoi(probe: &Probe) -> Result<(), Failure> {
    probe.at(apic::EOI);
    let write = access::store(apic::EOI, 0x55);
    write.must(write_fate(probe.level(), apic::EOI))?;
    let stored = probe.level() == Level::RegisterVirtualization;
    let at_exit = write.exit.map_or(0, |exit| exit.word);
    equal("EOI at the exit", at_exit, if stored { 0x55u64 } else { 0 })?;
    equal("EOI in the page", probe.word(apic::EOI), 0u64)
}

/// Accesses of other widths, and accesses beside the first four bytes of a slot.
fn widths(probe: &Probe) -> Result<(), Failure> {
    let level = probe.level();
    for offset in [apic::TPR, apic::SVR, 0x300, 0x380] {
        probe.at(offset);
        let before = probe.word(offset);
        access::store_wide(offset, u64::MAX).must(refused(level, offset, true))?;
        equal("page after a wide store", probe.word(offset), before)?;
        access::load_wide(offset).must(refused(level, offset, false))?;
        for beside in [offset + 1, offset + 2, offset + 4, offset + 12] {
            probe.at(beside);
            access::load(beside).must(refused(level, beside, false))?;
            access::store(beside, 0xffff_ffff).must(refused(level, beside, true))?;
        }
        equal("page after stores beside", probe.word(offset), before)?;
    }
    // Parts of a register are virtualized where the whole is, but for the TPR without register virtualization.
    let version = probe.word(0x30);
    for part in 0..4 {
        probe.at(0x30 + part);
        let read = access::load_byte(0x30 + part);
        match read_fate(level, 0x30) {
            Fate::Silent => read.must(Fate::Silent)?,
            _ => read.must(refused(level, 0x30 + part, false))?,
        }
        equal("byte", read.value()?, version >> (8 * part) & 0xff)?;
    }
    let read = access::load_word(0x32);
    check(read.exits == u64::from(level < Level::RegisterVirtualization), "exits of 2 bytes")?;
    equal("2 bytes", read.value()?, version >> 16)
}
