//! Memory-mapped APIC accesses on the APICv model: every offset, read and written, under every combination of controls.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{Access, ExitReason, Knobs, Outcome, Window};

/// The offsets that do anything, and what a read and a write of them do. Columns: the TPR shadow alone; with
/// virtual-interrupt delivery; with register virtualization; with both.
/// `X` APIC-access exit, `V` virtualized without exit, `W` stored and APIC-write exit.
const TABLE: &[(std::ops::RangeInclusive<u32>, &str, &str)] = &[
    (0x020..=0x020, "XXVV", "XXWW"),
    (0x030..=0x030, "XXVV", "XXXX"),
    (0x080..=0x080, "VVVV", "VVVV"),
    (0x0b0..=0x0b0, "XVVV", "XVWV"),
    (0x0d0..=0x0f0, "XXVV", "XXWW"),
    (0x100..=0x270, "XXVV", "XXXX"),
    (0x280..=0x280, "XXVV", "XXWW"),
    (0x300..=0x300, "XVVV", "XWWW"),
    (0x310..=0x310, "XXVV", "XXVV"),
    (0x320..=0x370, "XXVV", "XXWW"),
    (0x380..=0x380, "XXVV", "XXWW"),
    (0x3e0..=0x3e0, "XXVV", "XXWW"),
];

const COLUMNS: [Setup; 4] = [
    Setup::FLEX_PRIORITY,
    Setup { delivery: true, ..Setup::FLEX_PRIORITY },
    Setup::REGISTERS,
    Setup::DELIVERY,
];

/// What the table says of an offset: read and write letter in a column.
fn expected(offset: u32, column: usize) -> (char, char) {
    let letter = |letters: &str| letters.chars().nth(column).expect("one letter a column");
    let row = TABLE.iter().find(|(offsets, ..)| offsets.contains(&offset));
    row.map_or(('X', 'X'), |(_, read, write)| (letter(read), letter(write)))
}

/// A value that no other offset has, small enough to be no self-IPI in the ICR.
fn pattern(offset: u32) -> u32 {
    0xa5_0000 | offset
}

fn filled() -> Box<Storage> {
    let storage = Storage::new();
    for offset in (0..0x1000).step_by(16) {
        storage.set_word(offset, pattern(offset));
    }
    for offset in (0x100..0x280).step_by(16) {
        storage.set_word(offset, 0);
    }
    storage.set_word(0x080, 0x40);
    storage
}

#[test]
fn every_offset_reads_as_the_table_says() {
    for (column, setup) in COLUMNS.into_iter().enumerate() {
        for offset in (0..0x1000).step_by(16) {
            let storage = filled();
            let mut rig = Rig::running(&storage, setup);
            let outcome = rig.core.mmio_read(offset, 4);
            let wanted = match expected(offset, column).0 {
                'V' => Outcome::Value(storage.word(offset).into()),
                _ => {
                    assert_eq!(outcome.reason(), Some((ExitReason::ApicAccess, offset.into())));
                    assert!(!outcome.exit().expect("an exit").trap_like);
                    continue;
                }
            };
            assert_eq!(outcome, wanted, "read of {offset:#x} with {setup:?}");
        }
    }
}

#[test]
fn every_offset_is_written_as_the_table_says() {
    for (column, setup) in COLUMNS.into_iter().enumerate() {
        for offset in (0..0x1000).step_by(16) {
            let storage = filled();
            let mut rig = Rig::running(&storage, setup);
            let before = storage.word(offset);
            let written = 0x5a00_0000 | offset;
            let outcome = rig.core.mmio_write(offset, 4, written.into());
            let said = format!("write of {offset:#x} with {setup:?}");
            let after = match expected(offset, column).1 {
                'X' => {
                    assert_eq!(
                        outcome.reason(),
                        Some((ExitReason::ApicAccess, 0x1000 | u64::from(offset))),
                        "{said}"
                    );
                    assert!(!outcome.exit().expect("an exit").trap_like, "{said}");
                    before
                }
                'W' => {
                    assert_eq!(
                        outcome.reason(),
                        Some((ExitReason::ApicWrite, offset.into())),
                        "{said}"
                    );
                    assert!(outcome.exit().expect("an exit").trap_like, "{said}");
                    written
                }
                _ => {
                    assert_eq!(outcome, Outcome::Done, "{said}");
                    match offset {
                        0x080 => written & 0xff,
                        0x0b0 => 0,
                        _ => written & 0xff00_0000,
                    }
                }
            };
            assert_eq!(storage.word(offset), after, "{said}");
        }
    }
}

#[test]
fn the_access_page_itself_is_never_touched() {
    let storage = filled();
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    for offset in (0..0x1000).step_by(16) {
        for write in [false, true] {
            if !rig.core.in_guest() {
                rig.enter();
            }
            let access =
                if write { Access::write(offset, 4, 0x7777_7777) } else { Access::read(offset, 4) };
            let _ = rig.core.mmio(&[access]);
        }
    }
    assert!(
        storage.access_page.iter().all(|word| word.load(std::sync::atomic::Ordering::SeqCst) == 0)
    );
    assert_eq!(rig.memory.stray_accesses(), 0);
}

#[test]
fn without_the_tpr_shadow_every_access_exits() {
    let setup = Setup { apic_accesses: true, ..Setup::NONE };
    for offset in (0..0x1000).step_by(16) {
        let storage = filled();
        let read = Rig::running(&storage, setup).core.mmio_read(offset, 4);
        assert_eq!(read.reason(), Some((ExitReason::ApicAccess, offset.into())));
        let write = Rig::running(&storage, setup).core.mmio_write(offset, 4, 1);
        assert_eq!(write.reason(), Some((ExitReason::ApicAccess, 0x1000 | u64::from(offset))));
    }
}

#[test]
fn without_virtualized_accesses_the_window_is_what_paging_makes_it() {
    let storage = filled();
    let setup = Setup { tpr_shadow: true, ..Setup::NONE };
    let mut rig = Rig::running(&storage, setup);
    rig.map_window_to_page();
    for offset in (0..0x1000).step_by(4) {
        assert_eq!(rig.core.mmio_write(offset, 4, offset.into()), Outcome::Done);
        assert_eq!(storage.word(offset), offset);
        assert_eq!(rig.core.mmio_read(offset, 4), Outcome::Value(offset.into()));
    }
    rig.core.window = Window::NotPresent;
    assert_eq!(rig.core.mmio_write(0xf0, 4, 0).reason(), Some((ExitReason::EptViolation, 0x182)));
    rig.enter();
    assert_eq!(rig.core.mmio_read(0xf0, 4).reason(), Some((ExitReason::EptViolation, 0x181)));
    rig.enter();
    rig.core.window = Window::ApicAccessPage;
    assert!(matches!(rig.core.mmio_read(0xf0, 4).reason(), Some((ExitReason::EptViolation, _))));
}

#[test]
fn only_the_low_dword_of_a_slot_and_at_most_four_bytes() {
    for setup in [Setup::REGISTERS, Setup::DELIVERY] {
        for (offset, width, virtualized) in [
            (0x0f0, 4, true),
            (0x0f0, 2, true),
            (0x0f1, 2, true),
            (0x0f2, 2, true),
            (0x0f3, 1, true),
            (0x0f0, 8, false),
            (0x0f3, 2, false),
            (0x0f1, 4, false),
            (0x0f4, 1, false),
            (0x0f4, 4, false),
            (0x0ef, 4, false),
            (0x0ff, 1, false),
        ] {
            let storage = filled();
            let read = Rig::running(&storage, setup).core.mmio_read(offset, width);
            let write = Rig::running(&storage, setup).core.mmio_write(offset, width, 0);
            if virtualized {
                let word = u64::from(pattern(0x0f0)) >> (offset % 4 * 8);
                let mask = (1_u64 << (width * 8)) - 1;
                assert_eq!(read, Outcome::Value(word & mask), "{offset:#x} x {width}");
                assert_eq!(write.reason(), Some((ExitReason::ApicWrite, offset.into())));
            } else {
                assert_eq!(
                    read.reason(),
                    Some((ExitReason::ApicAccess, offset.into())),
                    "{offset:#x} x {width}"
                );
                assert_eq!(
                    write.reason(),
                    Some((ExitReason::ApicAccess, 0x1000 | u64::from(offset)))
                );
            }
        }
    }
}

#[test]
fn without_register_virtualization_only_the_exact_offset_counts() {
    let setup = Setup { delivery: true, ..Setup::FLEX_PRIORITY };
    let storage = filled();
    for (offset, width, virtualized) in
        [(0x080, 1, true), (0x080, 2, true), (0x081, 1, false), (0x0b1, 1, false)]
    {
        let read = Rig::running(&storage, setup).core.mmio_read(offset, width);
        assert_eq!(matches!(read, Outcome::Value(_)), virtualized, "{offset:#x} x {width}");
    }
}

#[test]
fn ipi_virtualization_alone_makes_the_icr_writable() {
    let setup = Setup { ipi: true, ..Setup::FLEX_PRIORITY };
    let storage = filled();
    let write = Rig::running(&storage, setup).core.mmio_write(0x300, 4, 0xc_4040);
    assert_eq!(write.reason(), Some((ExitReason::ApicWrite, 0x300)));
    for virtualized in [false, true] {
        let knobs = Knobs { ipiv_virtualizes_icr_reads: virtualized, ..Knobs::default() };
        let mut rig = Rig::new(&storage, setup, knobs);
        rig.enter();
        assert_eq!(matches!(rig.core.mmio_read(0x300, 4), Outcome::Value(_)), virtualized);
    }
}

#[test]
fn older_processors_do_not_virtualize_reads_of_eoi_and_icr() {
    let storage = filled();
    let setup = Setup { delivery: true, ..Setup::FLEX_PRIORITY };
    let knobs = Knobs { vid_virtualizes_reads: false, ..Knobs::default() };
    for offset in [0x0b0, 0x300] {
        let mut rig = Rig::new(&storage, setup, knobs);
        rig.enter();
        assert_eq!(
            rig.core.mmio_read(offset, 4).reason(),
            Some((ExitReason::ApicAccess, offset.into()))
        );
    }
}

#[test]
fn access_types_in_the_qualification() {
    let storage = filled();
    for (access, qualification) in [
        (Access::read(0x390, 4), 0x0390),
        (Access::write(0x030, 4, 0), 0x1030),
        (Access::fetch(0x080), 0x2080),
        (Access::read(0x390, 4).during_event_delivery(), 0x3390),
        (Access::write(0x390, 4, 0).during_event_delivery(), 0x3390),
    ] {
        let outcome = Rig::running(&storage, Setup::DELIVERY).core.mmio(&[access]);
        assert_eq!(outcome.reason(), Some((ExitReason::ApicAccess, qualification)));
    }
}

#[test]
fn one_written_place_an_operation() {
    let storage = filled();
    // Read, change, write back: the write is emulated once, after both.
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    let outcome = rig.core.mmio(&[Access::read(0x0f0, 4), Access::write(0x0f0, 4, 0x1ff)]);
    assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, 0x0f0)));
    // The same place twice is one emulation.
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    let twice = [Access::write(0x080, 4, 0x20), Access::write(0x080, 4, 0x30)];
    assert_eq!(rig.core.mmio(&twice), Outcome::Done);
    assert_eq!(storage.word(0x0a0), 0x30);
    // A second place exits; the first value stays in the page and is not acted on.
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    let elsewhere = [Access::write(0x080, 4, 0x50), Access::write(0x0f0, 4, 0)];
    assert_eq!(rig.core.mmio(&elsewhere).reason(), Some((ExitReason::ApicAccess, 0x10f0)));
    assert_eq!((storage.word(0x080), storage.word(0x0a0)), (0x50, 0x30));
    // So does a read after a write.
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    let read_late = [Access::write(0x310, 4, 0), Access::read(0x310, 4)];
    assert_eq!(rig.core.mmio(&read_late).reason(), Some((ExitReason::ApicAccess, 0x310)));
}

#[test]
fn future_processors_store_svr_and_say_nothing() {
    let knobs = Knobs { svr_writes_never_exit: true, ..Knobs::default() };
    for setup in [Setup::REGISTERS, Setup::DELIVERY, Setup::IPI] {
        let storage = filled();
        let mut rig = Rig::new(&storage, setup, knobs);
        rig.enter();
        assert_eq!(rig.core.mmio_write(0x0f0, 4, 0x1ff), Outcome::Done);
        assert_eq!(storage.word(0x0f0), 0x1ff);
        assert_eq!(rig.core.exits(), 0);
        // Its neighbours still exit.
        assert_eq!(rig.core.mmio_write(0x0e0, 4, 0).reason(), Some((ExitReason::ApicWrite, 0x0e0)));
    }
    // Without register virtualization the write is not virtualized and still exits.
    let storage = filled();
    let mut rig = Rig::new(&storage, Setup::FLEX_PRIORITY, knobs);
    rig.enter();
    assert_eq!(
        rig.core.mmio_write(0x0f0, 4, 0x1ff).reason(),
        Some((ExitReason::ApicAccess, 0x10f0))
    );
}

#[test]
fn whether_low_tpr_bits_survive_is_a_knob() {
    for (keeps, wanted) in [(true, 0x57), (false, 0x50)] {
        let storage = filled();
        let mut rig = Rig::new(
            &storage,
            Setup::DELIVERY,
            Knobs { tpr_keeps_low_bits: keeps, ..Knobs::default() },
        );
        rig.enter();
        assert_eq!(rig.core.mmio_write(0x080, 4, 0xffff_ff57), Outcome::Done);
        assert_eq!(storage.word(0x080), wanted);
    }
}
