//! Lines that the manual leaves open, on the APICv model: both readings of each.

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{EntryFailure, ExitReason, Knobs, Outcome, Violation};

const IPI: Setup = Setup::IPI.in_x2apic();

fn running<'s>(storage: &'s Storage, setup: Setup, knobs: Knobs) -> Rig<'s> {
    let mut rig = Rig::new(storage, setup, knobs);
    rig.enter();
    rig
}

#[test]
fn a_self_ipi_by_the_icr_msr() {
    let command = 1 << 18 | 0x51;
    let storage = Storage::new();
    let mut rig = running(&storage, IPI, Knobs::default());
    assert_eq!(rig.core.wrmsr(0x830, command).reason(), Some((ExitReason::ApicWrite, 0x300)));
    assert_eq!(storage.irr(), []);

    let storage = Storage::new();
    let knobs = Knobs { ipiv_sends_self_by_msr: true, ..Knobs::default() };
    let mut rig = running(&storage, IPI, knobs);
    assert_eq!(rig.core.wrmsr(0x830, command), Outcome::Done);
    assert_eq!((storage.irr(), storage.word(0x300)), (vec![0x51], command as u32));
    // Not without virtual-interrupt delivery.
    let storage = Storage::new();
    let alone = Setup { delivery: false, posted: false, ..IPI };
    let outcome = running(&storage, alone, knobs).core.wrmsr(0x830, command);
    assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, 0x300)));
}

#[test]
fn ipi_virtualization_without_delivery() {
    let alone = Setup { delivery: false, posted: false, ..Setup::IPI };
    let storage = Storage::new();
    assert!(Rig::new(&storage, alone, Knobs::default()).try_enter().is_ok());
    let knobs = Knobs { ipiv_needs_delivery: true, ..Knobs::default() };
    let refused =
        Err(EntryFailure::InvalidControls(vec![Violation::IpiVirtualizationWithoutDelivery]));
    assert_eq!(Rig::new(&storage, alone, knobs).try_enter(), refused);
    assert!(Rig::new(&storage, Setup::IPI, knobs).try_enter().is_ok());
}

#[test]
fn the_length_at_apic_access_exits() {
    for apic_access_length in [0, 3, 15] {
        let storage = Storage::new();
        let knobs = Knobs { apic_access_length, ..Knobs::default() };
        let exit = running(&storage, Setup::DELIVERY, knobs).core.mmio_read(0x0a0, 4).exit();
        assert_eq!(exit.map(|exit| exit.instruction_length), Some(apic_access_length));
    }
}

#[test]
fn writes_beside_the_exact_offset() {
    // Without register virtualization.
    let setup = Setup { delivery: true, ..Setup::FLEX_PRIORITY };
    let storage = Storage::new();
    let outcome = running(&storage, setup, Knobs::default()).core.mmio_write(0x0b1, 1, 0xab);
    assert_eq!(outcome.reason(), Some((ExitReason::ApicAccess, 0x10b1)));
    assert_eq!(storage.word(0x0b0), 0);
    let knobs = Knobs { writes_by_slot: true, ..Knobs::default() };
    let outcome = running(&storage, setup, knobs).core.mmio_write(0x0b1, 1, 0xab);
    assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, 0x0b1)));
    assert_eq!(storage.word(0x0b0), 0xab00);
    // With it.
    for (knobs, reason, word) in [
        (Knobs::default(), Some((ExitReason::ApicWrite, 0x312)), 0x0300_0000 | 0x00cd_0000),
        (knobs, None, 0x0300_0000),
    ] {
        let storage = Storage::new();
        storage.set_word(0x310, 0x0300_0000);
        let outcome = running(&storage, Setup::DELIVERY, knobs).core.mmio_write(0x312, 1, 0xcd);
        assert_eq!((outcome.reason(), storage.word(0x310)), (reason, word));
    }
}

#[test]
fn what_virtualized_msrs_store() {
    let setup = Setup::DELIVERY.in_x2apic();
    for (stores, words) in [(true, [0, 0, 0x51, 0]), (false, [0, 7, 7, 7])] {
        let storage = Storage::new();
        let places = [0x0b0, 0x0b4, 0x3f0, 0x3f4];
        places.iter().for_each(|&offset| storage.set_word(offset, 7));
        let knobs = Knobs { delivery_stores_msrs: stores, ..Knobs::default() };
        let mut rig = running(&storage, setup, knobs);
        assert_eq!(rig.core.wrmsr(0x80b, 0), Outcome::Done);
        assert_eq!(rig.core.wrmsr(0x83f, 0x51), Outcome::Done);
        assert_eq!(places.map(|offset| storage.word(offset)), words);
        assert_eq!(storage.irr(), [0x51]);
        // One that exits is stored, for whoever handles the exit.
        assert_eq!(rig.core.wrmsr(0x83f, 0x0e).reason(), Some((ExitReason::ApicWrite, 0x3f0)));
        assert_eq!(storage.word(0x3f0), 0x0e);
    }
}

#[test]
fn rvi_after_posted_interrupt_processing() {
    for (rescans, rvi) in [(false, 0x41), (true, 0x92)] {
        let storage = Storage::new();
        let knobs = Knobs { posting_rescans_virr: rescans, ..Knobs::default() };
        let mut rig = Rig::new(&storage, Setup::POSTED, knobs);
        // Software has left RVI below VIRR.
        storage.request(0x92);
        storage.post(0x41);
        rig.enter();
        assert_eq!(rig.core.external_interrupt(Rig::NOTIFICATION_VECTOR), Outcome::Posted);
        assert_eq!(rig.core.interrupt_status(), Some((rvi, 0)));
    }
}
