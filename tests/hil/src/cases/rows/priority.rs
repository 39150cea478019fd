//! Task priority, EOI, and the self-IPIs of ICR: what the processor virtualizes of them, and what it leaves to the driver.

use vlapic_core::Trigger;

use super::access::{self, Fate};
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Mode, Setting, check, equal, record};
use crate::guest::{Eoi, apic, cpu};
use crate::hypervisor::Level;
use crate::vmx::Reason;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-tpr", cpus: 1, applies: |_| true, run: |at| probe::run(at, tpr) },
    Case {
        name: "rows-tpr-threshold",
        cpus: 1,
        applies: |_| true,
        run: |at| probe::run(at, threshold),
    },
    Case { name: "rows-eoi-exit", cpus: 1, applies: |_| true, run: |at| probe::run(at, eoi_exit) },
    Case {
        name: "rows-self-ipi-icr",
        cpus: 1,
        applies: virtual_icr,
        run: |at| probe::run(at, self_ipi_icr),
    },
];

/// Levels at which stores to ICR reach the page.
fn virtual_icr(setting: Setting) -> bool {
    setting.mode == Mode::XApic && setting.level >= Level::RegisterVirtualization
}

const PPR: u16 = 0xa0;
const ISR: u16 = 0x100;
const IRR: u16 = 0x200;
const VECTOR: u8 = 0x51;

/// CR8 and TPR are one, whichever is written.
fn tpr(probe: &Probe) -> Result<(), Failure> {
    for class in (0..16).rev() {
        probe.at(class);
        let write = access::write_cr8(class);
        write.must(Fate::Silent)?;
        equal("TPR in the page", probe.word(apic::TPR), class << 4)?;
        let read = access::read_cr8();
        read.must(Fate::Silent)?;
        equal("CR8", read.value()?, class)?;
        let priority = probe.write(apic::TPR, class as u32 * 0x11);
        if probe.level() >= Level::ApicAccess {
            priority.must(Fate::Silent)?;
        }
        equal("TPR in the page", probe.word(apic::TPR), class * 0x11)?;
        equal("CR8 after a write of TPR", access::read_cr8().value()?, class)?;
        if probe.delivers() {
            equal("PPR in the page", probe.word(PPR), class * 0x11)?;
        }
    }
    for value in [0x10, 0x1f, 1 << 32, u64::MAX] {
        probe.at(value);
        let write = access::write_cr8(value);
        write.must(Fate::Silent)?;
        write.faulted()?;
        equal("TPR after #GP", probe.word(apic::TPR), 0u64)?;
    }
    Ok(())
}

/// TPR holds back its own class and those below. Without virtual-interrupt delivery the write that lets an interrupt through
/// exits, trap-like, and none before it does.
fn threshold(probe: &Probe) -> Result<(), Failure> {
    let by_cr8 = |class: u64| access::write_cr8(class);
    let by_tpr = |class: u64| probe.write(apic::TPR, (class as u32) << 4);
    let ways: [(&dyn Fn(u64) -> access::Access, bool); 2] =
        [(&by_cr8, true), (&by_tpr, probe.level() >= Level::ApicAccess)];
    cpu::interrupts_on();
    for (round, (lower, virtualized)) in ways.into_iter().enumerate() {
        probe.at(round as u64);
        let before = probe.context.count(VECTOR);
        access::write_cr8(7);
        probe.self_ipi(VECTOR);
        for class in [6, 5] {
            let write = lower(class);
            if virtualized {
                write.must(Fate::Silent)?;
            }
            check(probe.has(IRR, VECTOR), "the request is not held in IRR")?;
            equal("taken above the threshold", probe.context.count(VECTOR), before)?;
        }
        let write = lower(4);
        if probe.delivers() {
            write.must(Fate::Silent)?;
        } else if virtualized {
            write.must(Fate::Trapped { reason: Reason::TprBelowThreshold, qualification: 0 })?;
            equal("TPR at the exit", write.exit.map_or(0, |exit| exit.word), 0x40u64)?;
        }
        equal("taken below the threshold", probe.context.count(VECTOR), before + 1)?;
        check(!probe.has(IRR, VECTOR) && !probe.has(ISR, VECTOR), "it is not over")?;
    }
    access::write_cr8(0).must(Fate::Silent)
}

/// The EOI of a level-triggered interrupt comes to the hypervisor, that of an edge does not: with virtual-interrupt delivery
/// by the EOI-exit bitmap. What waits below is taken at the entry after the exit.
fn eoi_exit(probe: &Probe) -> Result<(), Failure> {
    const BELOW: u8 = 0x41;
    probe.context.set_handling(VECTOR, Eoi::Never, None);
    cpu::interrupts_on();
    for (round, trigger) in [Trigger::Level, Trigger::Edge, Trigger::Level].into_iter().enumerate()
    {
        probe.at(round as u64);
        let eois =
            || probe.machine.eois[usize::from(VECTOR)].load(core::sync::atomic::Ordering::SeqCst);
        let (before, below) = (eois(), probe.context.count(BELOW));
        probe.post(VECTOR, trigger);
        probe.self_ipi(BELOW);
        check(probe.has(ISR, VECTOR) && probe.has(IRR, BELOW), "one in service, one waiting")?;
        let end = probe.write(apic::EOI, 0);
        let level = trigger == Trigger::Level;
        end.must(eoi_fate(probe, level))?;
        if let (true, Some(exit)) = (probe.delivers(), end.exit) {
            equal("RVI and SVI at the exit", exit.status, u64::from(BELOW))?;
        }
        equal("EOIs for the I/O APICs", eois() - before, u64::from(level))?;
        check(!probe.has(ISR, VECTOR), "the vector is still in service")?;
        equal("taken after the EOI", probe.context.count(BELOW), below + 1)?;
    }
    Ok(())
}

fn eoi_fate(probe: &Probe, level: bool) -> Fate {
    let exit = |reason| Fate::Refused { reason, qualification: 0 };
    match (probe.level(), probe.setting.mode) {
        (Level::VirtualInterruptDelivery | Level::Posted, _) if level => {
            Fate::Trapped { reason: Reason::VirtualizedEoi, qualification: VECTOR.into() }
        }
        (Level::VirtualInterruptDelivery | Level::Posted, _) => Fate::Silent,
        (_, Mode::X2Apic) => exit(Reason::Wrmsr),
        // Of SVM's levels none comes here.
        (Level::Emulated | Level::AvicOff | Level::Avic | Level::TprShadow, _) => {
            Fate::Missing { address: apic::DEFAULT_BASE + 0xb0 }
        }
        (Level::ApicAccess, _) => {
            Fate::Refused { reason: Reason::ApicAccess, qualification: 0x10b0 }
        }
        (Level::RegisterVirtualization, _) => {
            Fate::Trapped { reason: Reason::ApicWrite, qualification: 0x0b0 }
        }
    }
}

/// Which ICR values are self-IPIs that the processor carries out: SDM Vol. 3C 29.4.3.2, bit by bit.
fn is_virtual_self_ipi(value: u32) -> bool {
    let reserved = value & 0xfff3_3000 == 0;
    let to_self = value >> 18 & 3 == 1;
    let edge = value >> 15 & 1 == 0;
    let fixed = value >> 8 & 7 == 0;
    let legal = value >> 4 & 0xf != 0;
    reserved && to_self && edge && fixed && legal
}

fn self_ipi_icr(probe: &Probe) -> Result<(), Failure> {
    const ICR: u16 = 0x300;
    /// Self, fixed, edge, vector 51.
    const PLAIN: u32 = 0x4_0051;
    // Physical destination FE, where nobody is, for the values that have no shorthand.
    access::store(0x310, 0xfe00_0000);
    let flips = (0..32).map(|bit| PLAIN ^ 1 << bit);
    for value in flips.chain([PLAIN, PLAIN | 1 << 14, 0x4_0010, 0x4_000f, 0x4_00ff, 0x0_0051]) {
        probe.at(value);
        record::clear();
        let write = access::store(ICR, value);
        if probe.delivers() && is_virtual_self_ipi(value) {
            write.must(Fate::Silent)?;
            check(probe.has(IRR, value as u8), "the self-IPI is not in IRR")?;
            let highest = probe.interrupt_status() & 0xff;
            check(highest >= u64::from(value & 0xff), "RVI is below the self-IPI")?;
        } else {
            write.must(Fate::Trapped { reason: Reason::ApicWrite, qualification: ICR.into() })?;
            equal("exits", write.exits, 1u64)?;
            equal("page at the exit", write.exit.map_or(0, |exit| exit.word), value)?;
        }
    }
    Ok(())
}
