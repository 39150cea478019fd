//! The access table on the AVIC model: every offset and every MSR, read and written.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{
    Capability, Feature, GuestOp, Knobs, Outcome, TprAtVmrun, VmExit, code,
};

/// Offset, MSR, what a read and a write do: `A` allowed, `C` accelerated, `T` trap, `F` fault, `E` as the extended
/// LVT, `#` #GP with all x2APIC checks, `-` there is no such register.
type Row = (std::ops::RangeInclusive<u32>, &'static str, &'static str, &'static str, &'static str);

/// The columns: MMIO read, MMIO write, RDMSR, WRMSR, the last two with every x2APIC check in front.
const TABLE: &[Row] = &[
    (0x020..=0x020, "A", "T", "A", "#"),
    (0x030..=0x030, "A", "F", "A", "#"),
    (0x080..=0x080, "A", "C", "A", "C"),
    (0x090..=0x090, "F", "F", "F", "#"),
    (0x0a0..=0x0a0, "A", "F", "A", "#"),
    (0x0b0..=0x0b0, "A", "C", "#", "C"),
    (0x0c0..=0x0c0, "A", "T", "#", "#"),
    (0x0d0..=0x0d0, "A", "T", "A", "#"),
    (0x0e0..=0x0e0, "A", "T", "#", "#"),
    (0x0f0..=0x0f0, "A", "T", "A", "T"),
    (0x100..=0x170, "A", "F", "A", "#"),
    (0x180..=0x1f0, "A", "F", "A", "#"),
    (0x200..=0x270, "A", "F", "A", "#"),
    (0x280..=0x280, "A", "T", "A", "T"),
    (0x300..=0x300, "A", "C", "A", "C"),
    (0x310..=0x310, "A", "A", "#", "#"),
    (0x320..=0x370, "A", "T", "A", "T"),
    (0x380..=0x380, "A", "T", "A", "T"),
    (0x390..=0x390, "F", "F", "F", "#"),
    (0x3e0..=0x3e0, "A", "T", "A", "T"),
    (0x3f0..=0x3f0, "A", "A", "#", "C"),
    (0x400..=0x400, "F", "F", "#", "#"),
    (0x410..=0x420, "F", "F", "F", "F"),
    (0x480..=0x4f0, "F", "F", "F", "F"),
    (0x500..=0x530, "E", "E", "E", "E"),
    (0x540..=0xff0, "F", "F", "#", "#"),
];

/// An offset that no row names: plain memory to MMIO, no register to MSRs.
const UNNAMED: [&str; 4] = ["A", "A", "#", "#"];

fn row(offset: u32) -> [&'static str; 4] {
    let found = TABLE.iter().find(|(offsets, ..)| offsets.contains(&offset));
    found.map_or(UNNAMED, |(_, read, write, rdmsr, wrmsr)| [read, write, rdmsr, wrmsr])
}

fn slots() -> impl Iterator<Item = u32> {
    (0..0x1000).step_by(0x10)
}

/// A small value that no x2APIC register refuses.
fn harmless(offset: u32) -> u32 {
    match offset {
        0x0b0 | 0x280 => 0,
        0x410 => 1,
        // A self-IPI.
        0x300 => 0x4_0041,
        _ => 0x41 & if offset == 0x3e0 { 0xb } else { 0xff },
    }
}

/// A page with a word of its own in each register, except those that say what is pending and in service.
fn filled() -> Box<Storage> {
    let storage = Storage::new(1);
    for offset in slots().filter(|offset| !(0x80..0x280).contains(offset)) {
        storage.vcpu(0).set_word(offset, 0xa500_0000 | offset);
    }
    storage
}

/// The same with those as well.
fn completely_filled() -> Box<Storage> {
    let storage = filled();
    for offset in slots().filter(|offset| (0x80..0x280).contains(offset)) {
        storage.vcpu(0).set_word(offset, 0xa500_0000 | offset);
    }
    storage
}

fn no_acceleration(offset: u32, write: bool, trap: bool) -> Outcome {
    Outcome::Exit(VmExit {
        code: code::NO_ACCELERATION,
        info_1: u64::from(write) << 32 | u64::from(offset),
        info_2: 0,
        trap,
    })
}

/// What a letter promises for a read that finds `value`, or for a write.
fn expected(letter: &str, offset: u32, value: Option<u64>, extended: bool) -> Outcome {
    let write = value.is_none();
    let done = value.map_or(Outcome::Done, Outcome::Value);
    match letter {
        "A" | "C" => done,
        "E" if extended && !write => done,
        "E" => no_acceleration(offset, write, extended),
        "T" => no_acceleration(offset, write, true),
        "F" => no_acceleration(offset, write, false),
        _ => Outcome::GeneralProtection,
    }
}

#[test]
fn mmio_reads() {
    for offset in slots() {
        for extended in [false, true] {
            let storage = completely_filled();
            let mut rig = rig_with_extended_lvt(&storage, extended, false, Knobs::default());
            let wanted = expected(
                row(offset)[0],
                offset,
                Some(storage.vcpu(0).word(offset).into()),
                extended,
            );
            assert_eq!(rig.machine.cores[0].mmio_read(offset), wanted, "{offset:#x}");
        }
    }
}

#[test]
fn mmio_writes() {
    for offset in slots() {
        for extended in [false, true] {
            let storage = filled();
            let mut rig = rig_with_extended_lvt(&storage, extended, false, Knobs::default());
            let before = storage.vcpu(0).word(offset);
            let outcome = rig.machine.cores[0].mmio_write(offset, harmless(offset));
            let wanted = expected(row(offset)[1], offset, None, extended);
            assert_eq!(outcome, wanted, "{offset:#x}");
            let stored = !matches!(outcome.exit(), Some(exit) if !exit.trap);
            let after = if stored { harmless(offset) } else { before };
            assert_eq!(storage.vcpu(0).word(offset), after, "{offset:#x}");
            assert_eq!(storage.window_word(offset), 0, "the mapping only grants the access");
        }
    }
}

#[test]
fn msr_reads() {
    for msr in 0x800..0x900 {
        let offset = (msr & 0xff) << 4;
        for extended in [false, true] {
            let storage = completely_filled();
            let mut rig = rig_with_extended_lvt(&storage, extended, true, Knobs::default());
            let word = |offset| u64::from(storage.vcpu(0).word(offset));
            let high = if msr == 0x830 { word(0x310) << 32 } else { 0 };
            let wanted = expected(row(offset)[2], offset, Some(high | word(offset)), extended);
            assert_eq!(rig.machine.cores[0].rdmsr(msr), wanted, "{msr:#x}");
        }
    }
}

#[test]
fn msr_writes() {
    for msr in 0x800..0x900 {
        let offset = (msr & 0xff) << 4;
        for extended in [false, true] {
            let storage = filled();
            let mut rig = rig_with_extended_lvt(&storage, extended, true, Knobs::default());
            let before = storage.vcpu(0).word(offset);
            let outcome = rig.machine.cores[0].wrmsr(msr, harmless(offset).into());
            let wanted = expected(row(offset)[3], offset, None, extended);
            assert_eq!(outcome, wanted, "{msr:#x}");
            let stored = match outcome {
                Outcome::GeneralProtection => false,
                Outcome::Exit(exit) => exit.trap,
                _ => true,
            };
            let after = if stored { harmless(offset) } else { before };
            assert_eq!(storage.vcpu(0).word(offset), after, "{msr:#x}");
        }
    }
}

/// With only the ICR's checks in front, an MSR is handled as its offset is; there are no such checks on reads.
#[test]
fn msrs_that_only_the_table_judges() {
    let knobs = Knobs { x2apic_checks_come_first: false, ..Knobs::default() };
    for msr in (0x800..0x900).filter(|msr| *msr != 0x83f) {
        let offset = (msr & 0xff) << 4;
        let storage = filled();
        let mut rig = rig_with_extended_lvt(&storage, true, true, knobs);
        let high = if msr == 0x830 { u64::from(storage.vcpu(0).word(0x310)) << 32 } else { 0 };
        let value = high | u64::from(storage.vcpu(0).word(offset));
        let wanted = expected(row(offset)[0], offset, Some(value), true);
        assert_eq!(rig.machine.cores[0].rdmsr(msr), wanted, "{msr:#x}");

        let storage = filled();
        let mut rig = rig_with_extended_lvt(&storage, true, true, knobs);
        let outcome = rig.machine.cores[0].wrmsr(msr, harmless(offset).into());
        assert_eq!(outcome, expected(row(offset)[1], offset, None, true), "{msr:#x}");
    }
}

#[test]
fn reserved_bits_of_the_icr_are_checked_under_both_readings() {
    for x2apic_checks_come_first in [false, true] {
        let knobs = Knobs { x2apic_checks_come_first, ..Knobs::default() };
        for bit in 0..32 {
            let storage = filled();
            let mut rig = rig_with_extended_lvt(&storage, true, true, knobs);
            let value = 0x4_0041 | 1 << bit;
            let refused = rig.machine.cores[0].wrmsr(0x830, value) == Outcome::GeneralProtection;
            assert_eq!(refused, matches!(bit, 12 | 13 | 16 | 17 | 20..), "bit {bit}");
            assert_eq!(storage.vcpu(0).word(0x300) == value as u32, !refused, "bit {bit}");
        }
    }
}

#[test]
fn a_silent_processor_stores_svr_and_nothing_else_happens() {
    let knobs = Knobs { svr_writes_never_exit: true, ..Knobs::default() };
    for x2avic in [false, true] {
        let storage = Storage::new(1);
        let mut rig = rig_with_extended_lvt(&storage, true, x2avic, knobs);
        let core = &mut rig.machine.cores[0];
        let outcome = if x2avic { core.wrmsr(0x80f, 0x1ff) } else { core.mmio_write(0x0f0, 0x1ff) };
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(storage.vcpu(0).word(0x0f0), 0x1ff);
        let trap =
            if x2avic { core.wrmsr(0x832, 0x1_0000) } else { core.mmio_write(0x320, 0x1_0000) };
        assert_eq!(trap, no_acceleration(0x320, true, true));
    }
}

#[test]
fn accesses_without_a_meaning() {
    let odd = [(0x084, 4), (0x080, 1), (0x082, 2), (0x080, 8), (0x07e, 4), (0x0fc, 8), (0x2f0, 4)];
    for unnamed_offsets_are_memory in [false, true] {
        let knobs = Knobs { unnamed_offsets_are_memory, ..Knobs::default() };
        for (offset, width) in odd {
            let storage = filled();
            let mut rig = rig_with_extended_lvt(&storage, true, false, knobs);
            let address = Rig::APIC_BASE + u64::from(offset);
            let value = 0x1122_3344_5566_7788;
            let core = &mut rig.machine.cores[0];
            let outcome = core.run(GuestOp::Write { address, width, value });
            if !unnamed_offsets_are_memory {
                assert_eq!(outcome, no_acceleration(offset & 0xff0, true, false));
                continue;
            }
            assert_eq!(outcome, Outcome::Done);
            let mask = u64::MAX >> (64 - 8 * width);
            let read = core.run(GuestOp::Read { address, width });
            assert_eq!(read, Outcome::Value(value & mask), "{offset:#x} x {width}");
            assert_eq!(core.v_tpr(), Some(0), "{offset:#x} x {width} is not a write of TPR");
        }
    }
}

#[test]
fn undefined_bits_of_the_exit_information() {
    let knobs = Knobs { undefined_bits_are_set: true, ..Knobs::default() };
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, knobs);
    rig.enter(0, 0);
    let exit = rig.machine.cores[0].mmio_write(0x320, 0x1_0000).exit().unwrap();
    assert_eq!(exit.info_1 & 0x1_0000_0ff0, 0x1_0000_0320);
    assert_eq!(exit.info_1 | 0x1_0000_0ff0, u64::MAX);
    assert_eq!(exit.info_2, u64::MAX);
}

#[test]
fn next_rip_under_both_readings() {
    for said in [false, true] {
        let knobs = Knobs { next_rip_at_avic_exits: said, ..Knobs::default() };
        // A trap leaves RIP after the instruction, a fault before it.
        for (offset, after) in [(0x320, 0x1002), (0x030, 0x1000)] {
            let storage = Storage::new(1);
            let mut rig = Rig::new(&storage, 1, knobs);
            let mut vmcb = rig.vmcb(0);
            vmcb.set64(0x578, 0x1000);
            rig.try_enter(0, vmcb).unwrap();
            let exit = rig.machine.cores[0].mmio_write(offset, 0).exit().unwrap();
            let vmcb = rig.machine.cores[0].take_vmcb().unwrap();
            assert_eq!(vmcb.get64(0x578), after);
            assert_eq!(vmcb.get64(0x0c8), if said { 0x1002 } else { 0 });
            let saved = [vmcb.get64(0x070), vmcb.get64(0x078), vmcb.get64(0x080)];
            assert_eq!(saved, [exit.code, exit.info_1, exit.info_2]);
        }
    }
}

#[test]
fn tpr_is_kept_in_two_places() {
    let storage = Storage::new(1);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    rig.enter(0, 0);
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.mmio_write(0x080, 0x57), Outcome::Done);
    assert_eq!((storage.vcpu(0).word(0x080), core.v_tpr()), (0x57, Some(5)));
    assert_eq!(core.run(GuestOp::ReadCr8), Outcome::Value(5));
    assert_eq!(storage.vcpu(0).word(0x0a0), 0x57, "PPR follows");
    assert_eq!(core.run(GuestOp::WriteCr8 { value: 9 }), Outcome::Done);
    assert_eq!((storage.vcpu(0).word(0x080), core.v_tpr()), (0x90, Some(9)));
    assert_eq!(core.run(GuestOp::WriteCr8 { value: 0x10 }), Outcome::GeneralProtection);
    let vmcb = rig.leave(0);
    assert_eq!(vmcb.get64(0x060) & 0xf, 9, "the exit saves V_TPR");
}

#[test]
fn tpr_at_vmrun_under_each_reading() {
    // V_TPR says 3, the page says 0x5a. What counts, and what the page then says.
    for (tpr_at_vmrun, v_tpr, in_page) in [
        (TprAtVmrun::VTpr, 3, 0x5a),
        (TprAtVmrun::VTprIntoPage, 3, 0x30),
        (TprAtVmrun::VTprOverPage, 3, 0x30),
        (TprAtVmrun::Page, 5, 0x5a),
    ] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs { tpr_at_vmrun, ..Knobs::default() });
        let mut vmcb = rig.vmcb(0);
        vmcb.set_bits64(0x060, 3);
        storage.vcpu(0).set_word(0x080, 0x5a);
        storage.vcpu(0).request(0x45);
        rig.try_enter(0, vmcb).unwrap();
        let core = &mut rig.machine.cores[0];
        assert_eq!(core.v_tpr(), Some(v_tpr), "{tpr_at_vmrun:?}");
        assert_eq!(storage.vcpu(0).word(0x080), in_page, "{tpr_at_vmrun:?}");
        let wanted = if v_tpr == 3 { Outcome::Delivered(0x45) } else { Outcome::Nothing };
        assert_eq!(core.boundary(true, false), wanted, "{tpr_at_vmrun:?}");
    }
}

fn rig_with_extended_lvt<'m>(
    storage: &'m Storage,
    extended: bool,
    x2avic: bool,
    knobs: Knobs,
) -> Rig<'m> {
    let full = Capability::full();
    let capability = if extended { full } else { full.without(Feature::ExtendedLvtAvicAccess) };
    let mut rig = Rig { x2avic, ..Rig::with(storage, 1, capability, knobs, 0) };
    rig.enter(0, 0);
    rig
}
