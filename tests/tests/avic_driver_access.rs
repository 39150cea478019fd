//! Every row of AVIC's access table, read and written in both modes, with the driver on the model: the exits that the
//! manual says there are, and what the guest sees of it as in plain emulation.

use avic::Face;
use vlapic_core::{Mode, Trigger, Width};
use vlapic_tests::avic_hypervisor::{Config, run};
use vlapic_tests::avic_model::{Capability, Feature, Knobs, Reading};
use vlapic_tests::hypervisor::{Answer, Op};
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::{Step, Subject};

/// What hardware does: the page alone; what the register does; exits after, and before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Page,
    All,
    Trap,
    Fault,
    /// A trap or the page where the processor says that it knows the extended LVT; else a fault.
    Extended,
}
use Does::{All, Extended, Fault, Page, Trap};

/// APM Vol. 2 Table 15-22: first and last offset, whether there is an MSR, read, write.
const TABLE: &[(u16, u16, bool, Does, Does)] = &[
    (0x020, 0x020, true, Page, Trap),
    (0x030, 0x030, true, Page, Fault),
    (0x080, 0x080, true, Page, All),
    (0x090, 0x090, true, Fault, Fault),
    (0x0a0, 0x0a0, true, Page, Fault),
    (0x0b0, 0x0b0, true, Page, All),
    (0x0c0, 0x0c0, false, Page, Trap),
    (0x0d0, 0x0d0, true, Page, Trap),
    (0x0e0, 0x0e0, false, Page, Trap),
    (0x0f0, 0x0f0, true, Page, Trap),
    (0x100, 0x170, true, Page, Fault),
    (0x180, 0x1f0, true, Page, Fault),
    (0x200, 0x270, true, Page, Fault),
    (0x280, 0x280, true, Page, Trap),
    (0x300, 0x300, true, Page, All),
    (0x310, 0x310, false, Page, Page),
    (0x320, 0x370, true, Page, Trap),
    (0x380, 0x380, true, Page, Trap),
    (0x390, 0x390, true, Fault, Fault),
    (0x3e0, 0x3e0, true, Page, Trap),
    (0x400, 0x420, true, Fault, Fault),
    (0x480, 0x4f0, true, Fault, Fault),
    (0x500, 0x530, true, Extended, Extended),
    (0x540, 0xff0, false, Fault, Fault),
];

/// Whether there is an MSR, read, write; `None` if the table does not name the offset, which is memory then.
fn row(offset: u16) -> Option<(bool, Does, Does)> {
    let found = TABLE.iter().find(|row| (row.0..=row.1).contains(&offset));
    found.map(|&(_, _, msr, read, write)| (msr, read, write))
}

/// What is written: nothing that has a reserved bit set.
fn value(offset: u16) -> u64 {
    match offset {
        // Physical destination 0, vector 41; 310 is written first.
        0x300 => 0x41,
        0x320 | 0x330 | 0x340 | 0x370 | 0x500..=0x530 => 0x1_0041,
        0x350 | 0x360 => 0x1_0700,
        0x0d0 => 0x0100_0000,
        0x0e0 => 0xffff_ffff,
        0x0f0 => 0x1ff,
        0x380 => 1000,
        0x3e0 => 0xb,
        0x0b0 | 0x280 => 0,
        0x410 => 1,
        _ => 0x20,
    }
}

/// The readings that could make a difference.
const ABOUT_ACCESSES: [&str; 6] = [
    "x2apic_checks_come_first",
    "unnamed_offsets_are_memory",
    "busy_is_left_set",
    "level_eoi_clears_isr",
    "next_rip_at_avic_exits",
    "undefined_bits_are_set",
];

/// The two that have to agree, each with an enabled APIC.
fn both<R>(config: Config, test: impl FnOnce(&mut dyn FnMut(Op) -> [Answer; 2]) -> R) -> (R, u64) {
    let mut reference = Reference::new(config.vcpus, config.profile, config.mode);
    run(config, |hypervisor| {
        let enable = Step::Write(0, vlapic_core::Register::Svr, 0x1ff);
        enable.apply(&mut reference);
        enable.apply(hypervisor);
        assert_ne!(hypervisor.face(0), Face::Emulated);
        let before = hypervisor.exits(0);
        let result =
            test(&mut |op| [reference.execute(0, op), Subject::execute(hypervisor, 0, op)]);
        // As the page stands, but for what the processor alone maintains (PPR), keeps although no guest can read it (SELF
        // IPI), or has as memory where there is no register.
        let exits = hypervisor.exits(0) - before;
        hypervisor.leave(0);
        for offset in (0..0x540).step_by(0x10) {
            let has_msr = row(offset).is_some_and(|(msr, ..)| msr);
            if has_msr && ![0x0a0, 0x3f0].contains(&offset) {
                let (expected, found) = (reference.word(0, offset), hypervisor.word(0, offset));
                assert_eq!(found, expected, "page {offset:#x}");
            }
        }
        assert_eq!(hypervisor.taken(0), reference.seen(0).taken);
        (result, exits)
    })
}

fn configs() -> impl Iterator<Item = (Config, bool)> {
    let of = |mode, extended, knobs| {
        let full = Capability::full();
        let without = full.without(Feature::ExtendedLvtAvicAccess);
        let processor = if extended { full } else { without };
        (Config { mode, processor, knobs, ..Config::new(1) }, extended)
    };
    let matters = |reading: &Reading| ABOUT_ACCESSES.contains(&reading.knob);
    let readings = Knobs::readings().into_iter().filter(matters).map(|reading| reading.knobs);
    let knobs: Vec<_> = readings.chain([Knobs::default()]).collect();
    [Mode::XApic, Mode::X2Apic].into_iter().flat_map(move |mode| {
        let all = knobs.clone();
        all.into_iter().flat_map(move |knobs| [false, true].map(|e| of(mode, e, knobs)))
    })
}

/// Whether the access exits on a processor that is as the table says.
fn exits(does: Does, extended_lvt: bool, write: bool) -> bool {
    match does {
        Page | All => false,
        Trap | Fault => true,
        Extended => write || !extended_lvt,
    }
}

#[test]
fn xapic_mode() {
    for (config, extended) in configs().filter(|(config, _)| config.mode == Mode::XApic) {
        for offset in (0..0x1000).step_by(0x10) {
            let row = row(offset);
            let unnamed = if config.knobs.unnamed_offsets_are_memory { Page } else { Fault };
            let (_, read, write) = row.unwrap_or((false, unnamed, unnamed));
            let width = Width::Dword;
            let (answers, count) = both(config, |access| access(Op::Load { offset, width }));
            assert_eq!(count, u64::from(exits(read, extended, false)), "read {offset:#x}");
            // What the manual has as memory, and a local APIC has not, is nobody's to compare.
            if row.is_some() {
                assert_eq!(answers[0], answers[1], "read {offset:#x}");
            }
            let store = Op::Store { offset, width, value: value(offset) };
            let (answers, count) = both(config, |access| access(store));
            assert_eq!(count, u64::from(exits(write, extended, true)), "write {offset:#x}");
            assert_eq!(answers[0], answers[1], "write {offset:#x}");
        }
    }
}

/// The driver lets through what the table has without an exit, as far as x2APIC has it at all; all else is an exit for
/// the MSR, before the processor looks at the table.
#[test]
fn x2apic_mode() {
    for (config, _) in configs().filter(|(config, _)| config.mode == Mode::X2Apic) {
        for msr in 0x800..=0x8ffu32 {
            let offset = ((msr & 0xff) << 4) as u16;
            let (named, read, write) = row(offset).unwrap_or((false, Page, Page));
            // EOI and SELF IPI cannot be read; SELF IPI stands in the text, not in the table.
            let through = named && read == Page && offset != 0x0b0;
            let (answers, count) = both(config, |access| access(Op::Rdmsr(msr)));
            assert_eq!(answers[0], answers[1], "read {msr:#x}");
            let refused_by_itself = msr == 0x83f;
            assert!(count == u64::from(!through) || refused_by_itself, "read {msr:#x}: {count}");
            let value = if offset == 0x3f0 { 0x41 } else { value(offset) };
            let (answers, count) = both(config, |access| access(Op::Wrmsr(msr, value)));
            assert_eq!(answers[0], answers[1], "write {msr:#x}");
            let through = named && write == All || msr == 0x83f;
            assert_eq!(count, u64::from(!through), "write {msr:#x}");
        }
    }
}

/// EOI, the one write that depends on what is in service.
#[test]
fn eoi_exits_for_a_level_triggered_vector_alone() {
    for (config, _) in configs() {
        for (trigger, exits) in [(Trigger::Edge, 0), (Trigger::Level, 1)] {
            let mut reference = Reference::new(1, config.profile, config.mode);
            run(config, |hypervisor| {
                let enable = Step::Write(0, vlapic_core::Register::Svr, 0x1ff);
                let steps = [enable, Step::Post(0, 0x61, trigger)];
                steps.iter().for_each(|step| {
                    step.apply(&mut reference);
                    step.apply(hypervisor);
                });
                let before = hypervisor.exits(0);
                let eoi = Step::Write(0, vlapic_core::Register::Eoi, 0);
                eoi.apply(&mut reference);
                eoi.apply(hypervisor);
                assert_eq!(hypervisor.exits(0) - before, exits, "{trigger:?}");
                assert_eq!(hypervisor.broadcasts(0), reference.seen(0).broadcasts);
                assert_eq!(hypervisor.slot(0).page().isr().highest(), None);
            });
        }
    }
}
