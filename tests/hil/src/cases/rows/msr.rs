//! x2APIC mode: the MSRs from 800 to 8FF, one by one (SDM Vol. 3C 29.5, Vol. 3A 10.12.1.2).

use super::access::{self, Access, Fate};
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Mode, Setting, check, equal};
use crate::guest::apic;
use crate::hypervisor::Level;
use crate::vmx::Reason;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-msr-read", cpus: 1, applies, run: |at| probe::run(at, read_all) },
    Case { name: "rows-msr-write", cpus: 1, applies, run: |at| probe::run(at, write_all) },
    Case { name: "rows-msr-reserved", cpus: 1, applies, run: |at| probe::run(at, reserved_bits) },
    Case { name: "rows-msr-other-mode", cpus: 1, applies: in_xapic, run: other_mode },
    Case { name: "rows-self-ipi-illegal", cpus: 1, applies, run: |at| probe::run(at, illegal) },
];

fn applies(setting: Setting) -> bool {
    setting.mode == Mode::X2Apic
}

fn in_xapic(setting: Setting) -> bool {
    setting.mode == Mode::XApic
}

/// MSRs less 800, by first and last.
type Ranges = &'static [(u8, u8)];

const READABLE: Ranges = &[
    (0x02, 0x03),
    (0x08, 0x08),
    (0x0a, 0x0a),
    (0x0d, 0x0d),
    (0x0f, 0x28),
    (0x30, 0x30),
    (0x32, 0x39),
    (0x3e, 0x3e),
];

const TPR: u8 = 0x08;
const PPR: u8 = 0x0a;
const EOI: u8 = 0x0b;
const ICR: u8 = 0x30;
const CURRENT_COUNT: u8 = 0x39;
const SELF_IPI: u8 = 0x3f;

fn within(ranges: Ranges, register: u8) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&register))
}

const fn msr(register: u8) -> u32 {
    0x800 + register as u32
}

/// The register's place in the page.
const fn offset(register: u8) -> u16 {
    (register as u16) << 4
}

const READ_EXITS: Fate = Fate::Refused { reason: Reason::Rdmsr, qualification: 0 };
const WRITE_EXITS: Fate = Fate::Refused { reason: Reason::Wrmsr, qualification: 0 };

/// What the driver may let through: what the processor answers rightly from the page. PPR is kept there with
/// virtual-interrupt delivery only, the current count never.
fn read_fate(level: Level, register: u8) -> Fate {
    let silent = match (level, register) {
        (Level::TprShadow, _) | (_, CURRENT_COUNT) => false,
        (_, TPR) => true,
        (Level::ApicAccess, _) => false,
        (_, PPR) => level.delivers(),
        _ => within(READABLE, register),
    };
    if silent { Fate::Silent } else { READ_EXITS }
}

fn read_all(probe: &Probe) -> Result<(), Failure> {
    // Values of their own, so that one register's is not taken for another's.
    for (register, value) in [(0x32, 0x1_0042), (0x35, 0x1_0743), (0x38, 0), (0x3e, 0xb)] {
        access::write_msr(msr(register), value).result.map_err(|_| Failure::Wrong("#GP"))?;
    }
    access::write_msr(msr(ICR), 0x0000_00fe_0000_4045).result.map_err(|_| Failure::Wrong("#GP"))?;
    for register in 0..=0xff {
        probe.at(msr(register));
        let read = access::read_msr(msr(register));
        read.must(read_fate(probe.level(), register))?;
        if !within(READABLE, register) {
            read.faulted()?;
            continue;
        }
        let low = probe.word(offset(register));
        let expected = match register {
            ICR => probe.word(offset(register) + 4) << 32 | low,
            _ => low,
        };
        equal("value, that of the page", read.value()?, expected)?;
    }
    equal("ICR", access::read_msr(msr(ICR)).value()?, 0x0000_00fe_0000_4045u64)?;
    equal("version", access::read_msr(0x803).value()? & 0xff, 0x15u64)
}

/// A register that can be written: a legal value, and the bits whose writing is a #GP.
struct Writable {
    register: u8,
    value: u64,
    reserved: u64,
}

const fn writable(register: u8, value: u64, reserved: u64) -> Writable {
    Writable { register, value, reserved }
}

const HIGH: u64 = 0xffff_ffff_0000_0000;

/// From the register figures of SDM Vol. 3A chapter 10. Bits that some processors take are left out: SVR bit 9, ICR bit 12.
const WRITABLE: &[Writable] = &[
    writable(TPR, 0x20, HIGH | 0xffff_ff00),
    writable(EOI, 0, HIGH | 0xffff_ffff),
    writable(0x0f, 0x1ff, HIGH | 0xffff_ec00),
    writable(0x28, 0, HIGH | 0xffff_ffff),
    // To physical destination FE, where nobody is.
    writable(ICR, 0x0000_00fe_0000_4045, 0xfff3_2000),
    writable(0x32, 0x1_0045, HIGH | 0xfff8_ef00),
    writable(0x33, 0x1_0045, HIGH | 0xfffe_e800),
    writable(0x34, 0x1_0045, HIGH | 0xfffe_e800),
    writable(0x35, 0x1_0045, HIGH | 0xfffe_0800),
    writable(0x36, 0x1_0045, HIGH | 0xfffe_0800),
    writable(0x37, 0x1_0045, HIGH | 0xfffe_ef00),
    writable(0x38, 0, HIGH),
    writable(0x3e, 0xb, HIGH | 0xffff_fff4),
    writable(SELF_IPI, 0x45, HIGH | 0xffff_ff00),
];

/// All writes exit but those that the processor virtualizes: of TPR; with virtual-interrupt delivery, of EOI and SELF IPI.
fn write_fate(level: Level, register: u8) -> Fate {
    let silent = match register {
        TPR => level >= Level::ApicAccess,
        EOI | SELF_IPI => level.delivers(),
        _ => false,
    };
    if silent { Fate::Silent } else { WRITE_EXITS }
}

fn write_all(probe: &Probe) -> Result<(), Failure> {
    for register in 0..=0xff {
        probe.at(msr(register));
        let before = probe.word(offset(register));
        let known = WRITABLE.iter().find(|known| known.register == register);
        let write = access::write_msr(msr(register), known.map_or(0, |known| known.value));
        write.must(write_fate(probe.level(), register))?;
        if let Some(exit) = write.exit {
            equal("page at the exit", exit.word, before)?;
        }
        let Some(known) = known else {
            write.faulted()?;
            equal("page after #GP", probe.word(offset(register)), before)?;
            continue;
        };
        write.value()?;
        if register != SELF_IPI {
            let value = known.value & 0xffff_ffff;
            equal("page after the write", probe.word(offset(register)), value)?;
        }
    }
    check(probe.has(0x200, 0x45), "the self-IPI is not in IRR")
}

/// Each reserved bit alone. Where the write does not exit it is the processor that refuses.
fn reserved_bits(probe: &Probe) -> Result<(), Failure> {
    for register in WRITABLE {
        let before = probe.word(offset(register.register));
        for bit in (0..64).filter(|bit| register.reserved >> bit & 1 != 0) {
            probe.at(u64::from(msr(register.register)) << 8 | bit);
            let write = access::write_msr(msr(register.register), register.value | 1 << bit);
            write.must(write_fate(probe.level(), register.register))?;
            write.faulted()?;
        }
        equal("page after #GP", probe.word(offset(register.register)), before)?;
    }
    check(!probe.has(0x200, 0x45), "a refused self-IPI was sent")
}

/// In xAPIC mode the MSRs do not exist, and none may be let through to the physical APIC.
fn other_mode(setting: Setting) -> Result<(), Failure> {
    probe::run(setting, |probe| {
        for register in 0..=0xff {
            probe.at(msr(register));
            let before = probe.word(offset(register));
            let both = [access::read_msr(msr(register)), access::write_msr(msr(register), 0)];
            both.iter().try_for_each(Access::faulted)?;
            both[0].must(READ_EXITS)?;
            both[1].must(WRITE_EXITS)?;
            equal("page after #GP", probe.word(offset(register)), before)?;
        }
        Ok(())
    })
}

/// SELF IPI of a vector below 16: with virtual-interrupt delivery an APIC-write exit, whose RIP is behind WRMSR; an error in
/// any case.
fn illegal(probe: &Probe) -> Result<(), Failure> {
    const SEND_ILLEGAL_VECTOR: u64 = 0x20;
    const ESR: u32 = 0x828;
    for vector in 0..16 {
        probe.at(vector);
        let write = access::write_msr(msr(SELF_IPI), vector);
        write.value()?;
        if probe.level().delivers() {
            let fate = Fate::Trapped { reason: Reason::ApicWrite, qualification: 0x3f0 };
            write.must(fate)?;
            equal("page at the exit", write.exit.map_or(u64::MAX, |exit| exit.word), vector)?;
        } else {
            write.must(WRITE_EXITS)?;
        }
        equal("exits", write.exits, 1u64)?;
        access::write_msr(ESR, 0).value()?;
        equal("ESR", access::read_msr(ESR).value()?, SEND_ILLEGAL_VECTOR)?;
        equal("IRR", probe.word(0x200), 0u64)?;
    }
    equal("SVR", access::read_msr(apic::msr(apic::SVR)).value()?, 0x1ffu64)
}
