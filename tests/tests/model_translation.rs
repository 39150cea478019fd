//! Translations of the register window on the APICv model: what a core remembers counts until it is flushed.

use std::sync::atomic::Ordering::SeqCst;

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{ExitReason, Knobs, Outcome, Window, controls, field};

/// A rig whose page tables map the window to the APIC-access page whatever the controls are.
fn mapped(storage: &Storage, setup: Setup, knobs: Knobs) -> Rig<'_> {
    let mut rig = Rig::new(storage, setup, knobs);
    rig.core.window = Window::Mapped(Storage::ACCESS_PAGE);
    rig
}

/// Turns "virtualize APIC accesses" on or off.
fn set_accesses(rig: &mut Rig<'_>, on: bool) {
    let bit = u64::from(controls::secondary::VIRTUALIZE_APIC_ACCESSES);
    let word = rig.vmcs().get(field::SECONDARY);
    rig.vmcs().set(field::SECONDARY, if on { word | bit } else { word & !bit });
}

/// Stores to SVR in the guest; whether the processor virtualized it.
fn is_virtualized(rig: &mut Rig<'_>) -> bool {
    rig.enter();
    let outcome = rig.core.mmio_write(0x0f0, 4, 0x1ff);
    match outcome {
        Outcome::Done => rig.leave(),
        _ => assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, 0x0f0))),
    }
    outcome != Outcome::Done
}

const OFF: Setup = Setup { apic_accesses: false, ..Setup::DELIVERY };

#[test]
fn turned_on_without_a_flush_the_window_stays_memory() {
    let storage = Storage::new();
    let mut rig = mapped(&storage, OFF, Knobs::default());
    assert!(!is_virtualized(&mut rig), "memory while the control is 0");
    set_accesses(&mut rig, true);
    assert!(!is_virtualized(&mut rig), "the old translation");
    assert_eq!(storage.access_page[0xf0 / 4].load(SeqCst), 0x1ff, "the store went astray");
    rig.core.invept();
    assert!(is_virtualized(&mut rig));
    assert_eq!(storage.word(0x0f0), 0x1ff);
}

#[test]
fn turned_off_without_a_flush_accesses_still_go_to_the_page() {
    let storage = Storage::new();
    let mut rig = mapped(&storage, Setup::DELIVERY, Knobs::default());
    assert!(is_virtualized(&mut rig));
    set_accesses(&mut rig, false);
    assert!(is_virtualized(&mut rig), "the old translation");
    rig.core.invept();
    assert!(!is_virtualized(&mut rig));
}

#[test]
fn another_mapping_counts_after_a_flush() {
    let storage = Storage::new();
    let mut rig = mapped(&storage, Setup::DELIVERY, Knobs::default());
    assert!(is_virtualized(&mut rig));
    rig.core.window = Window::NotPresent;
    assert!(is_virtualized(&mut rig), "the old translation");
    rig.core.invept();
    rig.enter();
    let outcome = rig.core.mmio_write(0x0f0, 4, 0x1ff);
    assert_eq!(outcome.exit().map(|exit| exit.reason), Some(ExitReason::EptViolation));
    // That nothing is there is not remembered.
    rig.core.window = Window::Mapped(Storage::ACCESS_PAGE);
    assert!(is_virtualized(&mut rig));
}

#[test]
fn guests_with_address_spaces_of_their_own_do_not_share() {
    let storage = Storage::new();
    let mut rig = mapped(&storage, OFF, Knobs::default());
    assert!(!is_virtualized(&mut rig));
    set_accesses(&mut rig, true);
    rig.core.address_space = 1;
    assert!(is_virtualized(&mut rig), "a guest that has not touched the window before");
    rig.core.address_space = 0;
    assert!(!is_virtualized(&mut rig));
}

#[test]
fn without_vpids_nothing_survives_an_exit() {
    let storage = Storage::new();
    let knobs = Knobs { translations_survive_exits: false, ..Knobs::default() };
    let mut rig = mapped(&storage, OFF, knobs);
    for on in [false, true, false] {
        set_accesses(&mut rig, on);
        assert_eq!(is_virtualized(&mut rig), on);
    }
}
