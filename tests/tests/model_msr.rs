//! x2APIC MSR accesses on the APICv model: every MSR, read and written, under every combination of controls.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{ExitReason, Knobs, MsrLeak, Outcome};

const X2_SHADOW: Setup = Setup::FLEX_PRIORITY.in_x2apic();
const X2_REGISTERS: Setup = Setup::REGISTERS.in_x2apic();
const X2_DELIVERY: Setup = Setup::DELIVERY.in_x2apic();
const X2_IPI: Setup = Setup::IPI.in_x2apic();

fn filled() -> Box<Storage> {
    let storage = Storage::new();
    for offset in (0..0x1000).step_by(4).filter(|offset| !(0x100..0x280).contains(offset)) {
        storage.set_word(offset, 0xbeef_0000 | offset);
    }
    storage.set_word(0x080, 0x40);
    storage.set_word(0x0a0, 0x40);
    storage
}

/// The value that the page holds for an MSR.
fn in_page(storage: &Storage, msr: u32) -> u64 {
    let offset = (msr & 0xff) << 4;
    u64::from(storage.word(offset)) | u64::from(storage.word(offset + 4)) << 32
}

#[test]
fn register_virtualization_reads_every_msr_from_the_page() {
    for setup in [X2_REGISTERS, X2_DELIVERY, X2_IPI] {
        let storage = filled();
        let mut rig = Rig::running(&storage, setup);
        for msr in 0x800..=0x8ff {
            assert_eq!(rig.core.rdmsr(msr), Outcome::Value(in_page(&storage, msr)), "{msr:#x}");
        }
        assert_eq!(rig.core.physical.leaks(), []);
        assert_eq!(rig.core.rdmsr(0x900), Outcome::GeneralProtection);
    }
}

#[test]
fn without_register_virtualization_only_the_tpr_is_read_from_the_page() {
    let storage = filled();
    let mut rig = Rig::running(&storage, X2_SHADOW);
    assert_eq!(rig.core.rdmsr(0x808), Outcome::Value(in_page(&storage, 0x808)));
    for msr in (0x800..=0x8ff).filter(|msr| *msr != 0x808) {
        assert_eq!(
            rig.core.rdmsr(msr),
            Outcome::GeneralProtection,
            "{msr:#x} with the host in xAPIC mode"
        );
    }
    assert_eq!(rig.core.physical.leaks(), []);
    rig.core.physical.x2apic = true;
    assert_eq!(rig.core.rdmsr(0x80f), Outcome::Value(0));
    assert_eq!(rig.core.rdmsr(0x80b), Outcome::GeneralProtection);
    assert_eq!(rig.core.physical.leaks(), [MsrLeak { msr: 0x80f, written: None }]);
}

#[test]
fn writes_that_are_virtualized_and_writes_that_leak() {
    // Which MSRs the page takes, in each configuration. The value written is 0.
    let cases: [(Setup, &[u32]); 4] = [
        (X2_SHADOW, &[0x808]),
        (X2_REGISTERS, &[0x808]),
        (X2_DELIVERY, &[0x808, 0x80b, 0x83f]),
        (X2_IPI, &[0x808, 0x80b, 0x830, 0x83f]),
    ];
    for (setup, virtualized) in cases {
        for msr in 0x800..=0x8ff {
            let storage = filled();
            let mut rig = Rig::running(&storage, setup);
            let before = in_page(&storage, msr);
            let outcome = rig.core.wrmsr(msr, 0);
            if virtualized.contains(&msr) {
                let wanted = match msr {
                    // Vector 0 is no legal vector: both end in an APIC-write exit.
                    0x830 => Some((ExitReason::ApicWrite, 0x300)),
                    0x83f => Some((ExitReason::ApicWrite, 0x3f0)),
                    _ => None,
                };
                assert_eq!(outcome.reason(), wanted, "{msr:#x} with {setup:?}");
                assert_eq!(in_page(&storage, msr), 0, "{msr:#x} with {setup:?}");
            } else {
                assert_eq!(outcome, Outcome::GeneralProtection, "{msr:#x} with {setup:?}");
                assert_eq!(in_page(&storage, msr), before, "{msr:#x} with {setup:?}");
            }
            assert_eq!(rig.core.physical.leaks(), []);
        }
    }
}

#[test]
fn an_unintercepted_write_reaches_the_physical_apic_in_x2apic_mode() {
    let storage = filled();
    let mut rig = Rig::running(&storage, X2_DELIVERY);
    rig.core.physical.x2apic = true;
    assert_eq!(rig.core.wrmsr(0x80f, 0x1bb), Outcome::Done);
    assert_eq!(rig.core.physical.register(0x80f), 0x1bb);
    assert_eq!(in_page(&storage, 0x80f), 0xbeef_00f4_beef_00f0);
    assert_eq!(rig.core.wrmsr(0x830, 0x45), Outcome::Done);
    let leaks =
        [MsrLeak { msr: 0x80f, written: Some(0x1bb) }, MsrLeak { msr: 0x830, written: Some(0x45) }];
    assert_eq!(rig.core.physical.leaks(), leaks);
}

#[test]
fn reserved_bits_fault_and_change_nothing() {
    for (msr, bad) in [
        (0x808, vec![1 << 8, 1 << 31, 1 << 32, 1 << 63]),
        (0x80b, vec![1, 1 << 31, 1 << 32]),
        (0x83f, vec![1 << 8 | 0x40, 1 << 32 | 0x40]),
        (0x830, vec![1 << 13, 1 << 16, 1 << 17, 1 << 20, 1 << 31]),
    ] {
        for value in bad {
            let storage = filled();
            let mut rig = Rig::running(&storage, X2_IPI);
            let before = in_page(&storage, msr);
            assert_eq!(
                rig.core.wrmsr(msr, value),
                Outcome::GeneralProtection,
                "{msr:#x} := {value:#x}"
            );
            assert_eq!(in_page(&storage, msr), before);
        }
    }
}

#[test]
fn stores_are_eight_bytes_wide() {
    let storage = filled();
    let mut rig = Rig::running(&storage, X2_IPI);
    // Level-triggered: no candidate for IPI virtualization, so the whole value is left for software.
    let icr = 0x1234_5678_0000_8041;
    assert_eq!(rig.core.wrmsr(0x830, icr).reason(), Some((ExitReason::ApicWrite, 0x300)));
    assert_eq!(in_page(&storage, 0x830), icr);
    assert_eq!(storage.word(0x310), 0xbeef_0310, "the xAPIC high half is not used");
    rig.enter();
    assert_eq!(rig.core.wrmsr(0x808, 0x21), Outcome::Done);
    assert_eq!((in_page(&storage, 0x808), storage.word(0x0a0)), (0x21, 0x21));
}

#[test]
fn the_busy_bit_of_the_icr_is_no_fault_but_no_candidate_either() {
    let storage = filled();
    let mut rig = Rig::running(&storage, X2_IPI);
    assert_eq!(rig.core.wrmsr(0x830, 0x1041).reason(), Some((ExitReason::ApicWrite, 0x300)));
    assert_eq!(in_page(&storage, 0x830), 0x1041);
}

#[test]
fn trap_like_exits_of_wrmsr_leave_a_misleading_instruction_length() {
    let storage = filled();
    let exit = Rig::running(&storage, X2_DELIVERY).core.wrmsr(0x83f, 5).exit().expect("an exit");
    assert_eq!((exit.trap_like, exit.qualification, exit.instruction_length), (true, 0x3f0, 2));
}

#[test]
fn the_bitmap_comes_first() {
    let storage = filled();
    for msr in (0x800..=0x8ff).chain([0x1b, 0x1fff]) {
        for write in [false, true] {
            let mut rig = Rig::new(&storage, X2_IPI, Knobs::default());
            let mut bitmap = [0; 4096];
            bitmap[if write { 0x800 } else { 0 } + msr as usize / 8] = 1 << (msr % 8);
            rig.memory.add_bytes(Storage::MSR_BITMAP, &bitmap);
            rig.enter();
            let outcome = if write { rig.core.wrmsr(msr, 0) } else { rig.core.rdmsr(msr) };
            let reason = if write { ExitReason::Wrmsr } else { ExitReason::Rdmsr };
            assert_eq!(outcome.reason(), Some((reason, 0)), "{msr:#x}");
            assert!(!outcome.exit().expect("an exit").trap_like);
        }
    }
}

#[test]
fn future_processors_store_svr_and_say_nothing() {
    let knobs = Knobs { svr_writes_never_exit: true, ..Knobs::default() };
    let storage = filled();
    let mut rig = Rig::new(&storage, X2_DELIVERY, knobs);
    rig.enter();
    assert_eq!(rig.core.wrmsr(0x80f, 0x1ff), Outcome::Done);
    assert_eq!(in_page(&storage, 0x80f), 0x1ff);
    assert_eq!(rig.core.wrmsr(0x80f, 1 << 32 | 0x1ff), Outcome::GeneralProtection);
    assert_eq!((rig.core.exits(), rig.core.physical.leaks().len()), (0, 0));
}

#[test]
fn without_x2apic_virtualization_nothing_reaches_the_page() {
    let storage = filled();
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    rig.core.physical.x2apic = true;
    assert_eq!(rig.core.rdmsr(0x808), Outcome::Value(0));
    assert_eq!(rig.core.wrmsr(0x808, 0x20), Outcome::Done);
    assert_eq!(storage.word(0x080), 0x40);
    assert_eq!(rig.core.physical.leaks().len(), 2);
}
