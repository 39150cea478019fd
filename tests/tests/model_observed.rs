//! What an emulated processor with APIC virtualization was seen to do, one row a test, on the APICv model.

use std::sync::atomic::Ordering::SeqCst;

use vlapic_tests::model::rig::{Rig, Setup, Storage};
use vlapic_tests::model::{ExitReason, Knobs, Outcome, Shadow, controls, field};

const NV: u8 = Rig::NOTIFICATION_VECTOR;

#[test]
fn svr_write_exits_after_the_store() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    let exit = rig.core.mmio_write(0x0f0, 4, 0x1ff).exit().expect("an APIC-write exit");
    assert_eq!((exit.reason as u32, exit.qualification, exit.trap_like), (56, 0x0f0, true));
    assert_eq!(exit.instruction_length, 0);
    assert_eq!(storage.word(0x0f0), 0x1ff);
    assert_eq!(storage.access_page[0xf0 / 4].load(SeqCst), 0);
}

#[test]
fn other_registers_exit_with_their_offset() {
    for (offset, value) in
        [(0x0e0, 0x0fff_ffff), (0x0d0, 0x100_0000), (0x020, 0), (0x280, 0), (0x320, 0x1_00ec)]
    {
        let storage = Storage::new();
        let outcome = Rig::running(&storage, Setup::DELIVERY).core.mmio_write(offset, 4, value);
        assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, offset.into())));
    }
    for (offset, value) in [(0x380, 1000), (0x300, 0x4_4500)] {
        let storage = Storage::new();
        let outcome = Rig::running(&storage, Setup::DELIVERY).core.mmio_write(offset, 4, value);
        assert_eq!(outcome.reason(), Some((ExitReason::ApicWrite, offset.into())));
    }
}

#[test]
fn icr_high_is_silent() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::DELIVERY);
    assert_eq!(rig.core.mmio_write(0x310, 4, 0x1234_5678), Outcome::Done);
    assert_eq!(storage.word(0x310), 0x1200_0000);
}

#[test]
fn accesses_that_are_not_virtualized_are_fault_like() {
    let storage = Storage::new();
    for (qualification, outcome) in [
        (0x1030, Rig::running(&storage, Setup::DELIVERY).core.mmio_write(0x030, 4, 0)),
        (0x0390, Rig::running(&storage, Setup::DELIVERY).core.mmio_read(0x390, 4)),
        (0x00a0, Rig::running(&storage, Setup::DELIVERY).core.mmio_read(0x0a0, 4)),
        (0x1080, Rig::running(&storage, Setup::DELIVERY).core.mmio_write(0x080, 8, 0)),
    ] {
        let exit = outcome.exit().expect("an APIC-access exit");
        assert_eq!(
            (exit.reason as u32, exit.qualification, exit.trap_like),
            (44, qualification, false)
        );
    }
}

#[test]
fn rvi_at_entry_is_delivered_and_ended_with_one_exit() {
    let storage = Storage::new();
    storage.request(0x51);
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.set_interrupt_status(0x51, 0);
    rig.enter();
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    rig.leave();
    assert_eq!((storage.irr(), storage.isr()), (vec![], vec![]));
    assert_eq!((rig.saved_interrupt_status(), rig.core.exits()), ((0, 0), 1));
}

#[test]
fn eoi_exit_bitmap() {
    let storage = Storage::new();
    storage.request(0x51);
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.set_interrupt_status(0x51, 0);
    rig.vmcs().set(field::EOI_EXIT_BITMAP[1], 1 << 0x11);
    rig.enter();
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
    let exit = rig.core.mmio_write(0x0b0, 4, 0).exit().expect("an EOI exit");
    assert_eq!((exit.reason as u32, exit.qualification, exit.trap_like), (45, 0x51, true));
}

#[test]
fn svi_blocks_rvi() {
    let storage = Storage::new();
    storage.request(0x51);
    storage.service(0x58);
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.set_interrupt_status(0x51, 0x58);
    rig.enter();
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Nothing);
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
}

#[test]
fn the_interrupt_window_beats_rvi() {
    let storage = Storage::new();
    storage.request(0x51);
    let mut rig = Rig::new(&storage, Setup::DELIVERY, Knobs::default());
    rig.set_interrupt_status(0x51, 0);
    rig.vmcs().set_bits(field::PRIMARY, controls::primary::INTERRUPT_WINDOW_EXITING);
    rig.enter();
    let exit = rig.core.boundary(true, Shadow::None).exit().expect("an interrupt-window exit");
    assert_eq!(exit.reason as u32, 7);
}

#[test]
fn posted_with_if_1_with_if_0_and_in_hlt() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::POSTED);
    // IF = 1.
    assert!(storage.post(0x51));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
    assert_eq!((storage.descriptor[1].load(SeqCst), storage.descriptor[4].load(SeqCst)), (0, 0));
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    // IF = 0: waits in VIRR for STI.
    assert!(storage.post(0x52));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.boundary(false, Shadow::None), Outcome::Nothing);
    assert_eq!(storage.irr(), [0x52]);
    assert_eq!(rig.core.boundary(true, Shadow::Sti), Outcome::Nothing);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x52));
    assert_eq!(rig.core.mmio_write(0x0b0, 4, 0), Outcome::Done);
    // HLT, not intercepted.
    assert_eq!(rig.core.hlt(), Outcome::Done);
    assert!(storage.post(0x53));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x53));
    assert_eq!(rig.core.exits(), 0);
}

#[test]
fn an_ordinary_interrupt_exits_with_its_vector() {
    let storage = Storage::new();
    let exit = Rig::running(&storage, Setup::POSTED)
        .core
        .external_interrupt(0x40)
        .exit()
        .expect("an exit");
    assert_eq!((exit.reason as u32, exit.interruption_info), (1, 0x8000_0040));
}

#[test]
fn shadow_and_access_page_alone() {
    let storage = Storage::new();
    let mut rig = Rig::running(&storage, Setup::FLEX_PRIORITY);
    let exit = rig.core.mmio_write(0x0f0, 4, 0x1ff).exit().expect("an exit");
    assert_eq!((exit.reason as u32, exit.qualification), (44, 0x10f0));
    storage.set_word(0x080, 0x50);
    rig.vmcs().set(field::TPR_THRESHOLD, 3);
    rig.enter();
    let exit = rig.core.mmio_write(0x080, 4, 0x20).exit().expect("an exit");
    assert_eq!(exit.reason as u32, 43);
}

#[test]
fn register_virtualization_without_delivery() {
    let storage = Storage::new();
    let exit = Rig::running(&storage, Setup::REGISTERS)
        .core
        .mmio_write(0x0b0, 4, 0)
        .exit()
        .expect("an exit");
    assert_eq!((exit.reason as u32, exit.qualification), (56, 0x0b0));
}

#[test]
fn x2apic_with_an_open_bitmap() {
    let storage = Storage::new();
    storage.set_word(0x0f0, 0x1ff);
    let mut rig = Rig::running(&storage, Setup::DELIVERY.in_x2apic());
    assert_eq!(rig.core.rdmsr(0x80f), Outcome::Value(0x1ff));
    // The write is not virtualized. Host in xAPIC mode: the guest faults.
    assert_eq!(rig.core.wrmsr(0x80f, 0x1bb), Outcome::GeneralProtection);
    // Host in x2APIC mode: the host's own register changes.
    rig.core.physical.x2apic = true;
    assert_eq!(rig.core.wrmsr(0x80f, 0x1bb), Outcome::Done);
    assert_eq!((rig.core.physical.register(0x80f), storage.word(0x0f0)), (0x1bb, 0x1ff));
    // The three that are virtualized do not exit.
    assert_eq!(rig.core.wrmsr(0x808, 0x20), Outcome::Done);
    assert_eq!(rig.core.wrmsr(0x83f, 0x51), Outcome::Done);
    assert_eq!(rig.core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
    assert_eq!(rig.core.wrmsr(0x80b, 0), Outcome::Done);
    assert_eq!(rig.core.exits(), 0);
    let exit = rig.core.wrmsr(0x83f, 0x0f).exit().expect("an exit");
    assert_eq!((exit.reason as u32, exit.qualification, exit.trap_like), (56, 0x3f0, true));
}

#[test]
fn a_descriptor_needs_64_byte_alignment_and_no_more() {
    let storage = Storage::new();
    assert_eq!(Storage::DESCRIPTOR % 4096, 64);
    let mut rig = Rig::running(&storage, Setup::POSTED);
    assert!(storage.post(0x51));
    assert_eq!(rig.core.external_interrupt(NV), Outcome::Posted);
    assert_eq!(rig.memory.stray_accesses(), 0);
}
