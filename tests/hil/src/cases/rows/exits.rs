//! How many VM exits each operation costs, and how much work of the driver's.
//!
//! The column of each level is worked out from SDM Vol. 3C chapter 29 and from what the driver is to let through: an exit
//! for each access that is emulated or trapped, none for one that the processor virtualizes.

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::Trigger;

use super::access::ignore;
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Setting, equal, record};
use crate::guest::{Eoi, apic, cpu};
use crate::hypervisor::{Level, meter};
use crate::println;

pub(super) const CASES: &[Case] = &[Case { name: "exits", cpus: 1, applies: |_| true, run }];

/// One operation of the guest.
struct Operation {
    name: &'static str,
    /// What comes before each, uncounted.
    prepare: fn(&Probe),
    make: Make,
    /// Exits of one operation in xAPIC mode: a digit for each level, from TPR shadow to posted interrupts. `-----` where
    /// there is no such operation.
    xapic: &'static str,
    /// And in x2APIC mode.
    x2apic: &'static str,
}

enum Make {
    Read(u16),
    Write(u16, u32),
    Other(fn(&Probe)),
}

const fn read(name: &'static str, at: u16, xapic: &'static str, x2apic: &'static str) -> Operation {
    Operation { name, prepare: |_| {}, make: Make::Read(at), xapic, x2apic }
}

const fn write(
    name: &'static str,
    (at, value): (u16, u32),
    xapic: &'static str,
    x2apic: &'static str,
) -> Operation {
    Operation { name, prepare: |_| {}, make: Make::Write(at, value), xapic, x2apic }
}

const fn other(
    name: &'static str,
    prepare: fn(&Probe),
    make: fn(&Probe),
    xapic: &'static str,
    x2apic: &'static str,
) -> Operation {
    Operation { name, prepare, make: Make::Other(make), xapic, x2apic }
}

const NONE: &str = "-----";

/// The vectors of edge and of level-triggered interrupts. Two, since the processor leaves TMR alone: the EOI of a self-IPI
/// exits as long as TMR says that its vector was level-triggered last.
const VECTOR: u8 = 0x51;
const LEVEL_VECTOR: u8 = 0x42;
const VECTOR_WORD: u32 = VECTOR as u32;
/// ICR: fixed, edge, to the sender.
const TO_SELF: u32 = 0x4_0000 | VECTOR_WORD;
/// ICR: fixed, edge, to all but the sender: nobody.
const TO_OTHERS: u32 = 0xc_0000 | VECTOR_WORD;
const TSC_DEADLINE_MSR: u32 = 0x6e0;
const SELF_IPI: u16 = 0x3f0;
const ICR_LOW: u16 = 0x300;

const OPERATIONS: &[Operation] = &[
    read("read-id", 0x020, "11000", "11000"),
    read("read-version", 0x030, "11000", "11000"),
    read("read-tpr", 0x080, "10000", "10000"),
    read("read-ppr", 0x0a0, "11111", "11100"),
    read("read-eoi", 0x0b0, "11000", "11111"),
    read("read-ldr", 0x0d0, "11000", "11000"),
    read("read-dfr", 0x0e0, "11000", NONE),
    read("read-svr", 0x0f0, "11000", "11000"),
    read("read-isr", 0x120, "11000", "11000"),
    read("read-tmr", 0x1a0, "11000", "11000"),
    read("read-irr", 0x220, "11000", "11000"),
    read("read-esr", 0x280, "11000", "11000"),
    read("read-icr", 0x300, "11000", "11000"),
    read("read-icr-high", 0x310, "11000", NONE),
    read("read-lvt-timer", 0x320, "11000", "11000"),
    read("read-lvt-thermal", 0x330, "11000", "11000"),
    read("read-lvt-performance", 0x340, "11000", "11000"),
    read("read-lint0", 0x350, "11000", "11000"),
    read("read-lint1", 0x360, "11000", "11000"),
    read("read-lvt-error", 0x370, "11000", "11000"),
    read("read-initial-count", 0x380, "11000", "11000"),
    read("read-current-count", 0x390, "11111", "11111"),
    read("read-divide", 0x3e0, "11000", "11000"),
    write("write-tpr", (0x080, 0x30), "10000", "10000"),
    write("write-ldr", (0x0d0, 0x0100_0000), "11111", NONE),
    write("write-dfr", (0x0e0, 0xffff_ffff), "11111", NONE),
    write("write-svr", (0x0f0, 0x1ff), "11111", "11111"),
    write("write-esr", (0x280, 0), "11111", "11111"),
    write("write-icr-high", (0x310, 0), "11000", NONE),
    write("write-icr-others", (ICR_LOW, TO_OTHERS), "11111", "11111"),
    write("write-lvt-timer", (0x320, 0x1_0000), "11111", "11111"),
    write("write-lvt-thermal", (0x330, 0x1_0000), "11111", "11111"),
    write("write-lvt-performance", (0x340, 0x1_0000), "11111", "11111"),
    write("write-lint0", (0x350, 0x1_0000), "11111", "11111"),
    write("write-lint1", (0x360, 0x1_0000), "11111", "11111"),
    write("write-lvt-error", (0x370, 0x1_0000), "11111", "11111"),
    write("write-initial-count", (0x380, 0), "11111", "11111"),
    write("write-divide", (0x3e0, 0xb), "11111", "11111"),
    other("read-cr8", |_| {}, |_| ignore(cpu::read_cr8()), "00000", "00000"),
    other("write-cr8", |_| {}, |_| set_cr8(3), "00000", "00000"),
    other("write-tsc-deadline", |_| {}, far_deadline, "11111", "11111"),
    other("eoi-spurious", |_| {}, end, "11100", "11100"),
    other("eoi-edge", |probe| in_service(probe, VECTOR, Trigger::Edge), end, "11100", "11100"),
    other(
        "eoi-level",
        |probe| in_service(probe, LEVEL_VECTOR, Trigger::Level),
        end,
        "11111",
        "11111",
    ),
    // The interrupt stays pending: IF is 0. ICR writes are intercepted in x2APIC mode; self-IPI has an MSR of its own.
    other("self-ipi-icr", mask, |probe| put(probe, ICR_LOW, TO_SELF), "11100", "11111"),
    other("self-ipi-msr", mask, |probe| put(probe, SELF_IPI, VECTOR_WORD), NONE, "11100"),
    // And here taken and ended: the write, and the EOI.
    other("self-ipi-taken", unmask, self_ipi, "22200", "22200"),
    // The write that unblocks it, and the EOI. Without virtual-interrupt delivery the write is below the TPR threshold.
    other("tpr-lowered-taken", blocked_by_tpr, |_| set_cr8(0), "22200", "22200"),
];

/// Exits so far of each operation.
static COUNTS: [AtomicU64; OPERATIONS.len()] = [const { AtomicU64::new(0) }; OPERATIONS.len()];
/// The least time-stamp ticks that the driver's part in one of each took: an exit of the host's own comes rarely.
static WORK: [AtomicU64; OPERATIONS.len()] = [const { AtomicU64::new(0) }; OPERATIONS.len()];
const TIMES: u64 = 16;

fn run(setting: Setting) -> Result<(), Failure> {
    COUNTS.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    WORK.iter().for_each(|work| work.store(u64::MAX, Ordering::Relaxed));
    meter::calibrate();
    probe::run(setting, measure)?;
    let (level, mode) = (setting.level.name(), setting.mode.name());
    let mut result = Ok(());
    for (index, (operation, count)) in OPERATIONS.iter().zip(&COUNTS).enumerate() {
        let Some(each) = expected(operation, setting) else { continue };
        let (count, expect) = (count.load(Ordering::Relaxed), each * TIMES);
        let name = operation.name;
        let work = WORK[index].load(Ordering::Relaxed);
        println!(
            "HIL-EXITS op={name} level={level} mode={mode} count={count} per={TIMES} expect={expect} work={work}"
        );
        result = result.and(equal(name, count, expect));
    }
    result
}

/// Exits of one operation, or `None` where there is no such operation.
fn expected(operation: &Operation, setting: Setting) -> Option<u64> {
    let column = Level::VT_X.iter().position(|&level| level == setting.level)?;
    let row = match setting.mode {
        crate::cases::Mode::XApic => operation.xapic,
        crate::cases::Mode::X2Apic => operation.x2apic,
    };
    Some(u64::from(char::from(*row.as_bytes().get(column)?).to_digit(10)?))
}

fn measure(probe: &Probe) -> Result<(), Failure> {
    for (index, operation) in OPERATIONS.iter().enumerate() {
        if expected(operation, probe.setting).is_none() {
            continue;
        }
        probe.at(index as u64);
        for _ in 0..TIMES {
            (operation.prepare)(probe);
            record::clear();
            meter::clear();
            match operation.make {
                // A write-only register of x2APIC mode faults; the exit is what counts.
                Make::Read(at) => ignore(apic::read(probe.context, at)),
                Make::Write(at, value) => put(probe, at, value),
                Make::Other(make) => make(probe),
            }
            let work = meter::total();
            COUNTS[index].fetch_add(record::total(), Ordering::Relaxed);
            WORK[index].fetch_min(work, Ordering::Relaxed);
        }
        clean(probe)?;
    }
    Ok(())
}

/// Takes what is pending, ends what is in service, and lowers TPR.
fn clean(probe: &Probe) -> Result<(), Failure> {
    probe.context.set_handling(VECTOR, Eoi::Last, None);
    set_cr8(0);
    end(probe);
    cpu::interrupts_on();
    cpu::interrupts_off();
    equal("interrupts left over", probe.word(0x120) | probe.word(0x220), 0u64)
}

fn mask(_: &Probe) {
    cpu::interrupts_off();
}

fn unmask(_: &Probe) {
    cpu::interrupts_on();
}

/// Makes the interrupt be in service.
fn in_service(probe: &Probe, vector: u8, trigger: Trigger) {
    probe.context.set_handling(vector, Eoi::Never, None);
    probe.post(vector, trigger);
    cpu::interrupts_on();
    cpu::interrupts_off();
}

/// Makes the interrupt pend behind TPR alone.
fn blocked_by_tpr(probe: &Probe) {
    set_cr8(15);
    self_ipi(probe);
    cpu::interrupts_on();
}

/// By the register that is for it.
fn self_ipi(probe: &Probe) {
    if probe.x2apic() {
        put(probe, SELF_IPI, VECTOR_WORD);
    } else {
        put(probe, ICR_LOW, TO_SELF);
    }
}

fn end(probe: &Probe) {
    put(probe, apic::EOI, 0);
}

fn far_deadline(_: &Probe) {
    ignore(cpu::write_msr(TSC_DEADLINE_MSR, 1 << 62));
}

fn set_cr8(value: u64) {
    ignore(cpu::write_cr8(value));
}

/// Faults are looked at elsewhere.
fn put(probe: &Probe, offset: u16, value: u32) {
    ignore(apic::write(probe.context, offset, value.into()));
}
