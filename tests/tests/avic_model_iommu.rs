//! Device interrupts and the guest-APIC log on the model of the IOMMU.

use std::sync::atomic::AtomicU64;

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{Knobs, Outcome, RemapFault, register};
use vlapic_tests::model::PhysicalInterrupt;

const VALID: u64 = 1;
const GA_LOG: u64 = 1 << 2;
const NO_GAPPI: u64 = 1 << 5;
const IS_RUN: u64 = 1 << 6;
const GUEST: u64 = 1 << 7;

const LOG_ENABLE: u64 = 1 << 28;
const INTERRUPT_ENABLE: u64 = 1 << 29;
const RUN: u64 = 1 << 8;
const OVERFLOW: u64 = 1 << 9;
const INTERRUPT: u64 = 1 << 10;

/// Vector 55h for vCPU 0, as bits 127:64.
fn high() -> u64 {
    0x55 | Storage::page_address(0)
}

/// Bits 63:0: destination core 1, GATag ABCDh.
fn low(flags: u64) -> u64 {
    0xabcd << 32 | 1 << 8 | VALID | GUEST | flags
}

fn rig_with_log(storage: &Storage) -> Rig<'_> {
    let mut rig = Rig::new(storage, 2, Knobs::default());
    rig.machine.iommu.log.write(register::LOG_BASE, 8 << 56 | Storage::LOG);
    rig.machine.iommu.log.write(register::CONTROL, LOG_ENABLE);
    rig
}

#[test]
fn a_vcpu_that_runs_gets_a_doorbell() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    rig.enter(1, 0);
    let entry = storage.set_remapping(3, low(IS_RUN | GA_LOG), high());
    rig.machine.iommu.interrupt(0x10, entry);
    assert_eq!(rig.machine.settle(), []);
    assert_eq!(rig.machine.cores[1].boundary(true, false), Outcome::Delivered(0x55));
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 0, "nothing to log");
    assert_eq!(storage.vcpu(0).word(0x1a0), 0, "TMR belongs to software");
}

#[test]
fn a_vcpu_that_does_not_run_gets_a_log_entry() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, low(GA_LOG), high());
    rig.machine.iommu.interrupt(0x4321, entry);
    rig.machine.iommu.finish();
    assert_eq!(storage.vcpu(0).irr(), [0x55]);
    assert_eq!(storage.log(0), 0x1000_4321_0000_abcd);
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 8);
    assert!(rig.machine.doorbells().is_empty());
    assert_eq!(rig.machine.memory().stray_accesses(), 0);
}

#[test]
fn without_the_flag_a_sleeping_vcpu_is_not_announced() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, low(0), high());
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(storage.vcpu(0).irr(), [0x55]);
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 0);
}

#[test]
fn the_tail_is_written_back_and_the_interrupt_raised() {
    let storage = Storage::new(1);
    let tail: Vec<_> = [AtomicU64::new(u64::MAX)].into();
    let mut rig = rig_with_log(&storage);
    rig.machine.memory().add_qwords(0x9000, &tail);
    let log = &mut rig.machine.iommu.log;
    log.write(register::LOG_TAIL_ADDRESS, 0x9000);
    log.write(register::CONTROL, LOG_ENABLE | INTERRUPT_ENABLE);
    log.interrupt = Some(PhysicalInterrupt { destination: 1, vector: 0x33 });
    let entry = storage.set_remapping(3, low(GA_LOG), high());
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(tail[0].load(std::sync::atomic::Ordering::SeqCst), 8);
    let log = &mut rig.machine.iommu.log;
    assert_eq!(log.read(register::STATUS), RUN | INTERRUPT);
    log.write(register::STATUS, INTERRUPT);
    assert_eq!(log.read(register::STATUS), RUN);
    let sent = rig.machine.bus().take();
    assert_eq!(sent, Some(PhysicalInterrupt { destination: 1, vector: 0x33 }));
}

#[test]
fn a_full_log_stops_until_software_starts_it_again() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, low(GA_LOG), high());
    for _ in 0..511 {
        rig.machine.iommu.interrupt(0, entry);
    }
    rig.machine.iommu.finish();
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 511 * 8);
    assert_eq!(rig.machine.iommu.log.read(register::STATUS), RUN);

    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    let log = &mut rig.machine.iommu.log;
    assert_eq!(log.read(register::STATUS), OVERFLOW);
    assert_eq!((storage.log(511), log.read(register::LOG_TAIL)), (0, 511 * 8));

    // Room alone does not start it, nor does enabling it while the overflow stands.
    log.write(register::LOG_HEAD, 511 * 8);
    log.write(register::CONTROL, 0);
    log.write(register::CONTROL, LOG_ENABLE);
    assert_eq!(log.read(register::STATUS), OVERFLOW);
    log.write(register::CONTROL, 0);
    log.write(register::STATUS, OVERFLOW);
    log.write(register::CONTROL, LOG_ENABLE);
    assert_eq!(log.read(register::STATUS), RUN);

    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 0, "the log is a ring");
    assert_eq!(storage.log(511), 0x1000_0000_0000_abcd);
}

#[test]
fn what_is_cached_and_what_is_not() {
    let storage = Storage::new(2);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, low(GA_LOG), high());
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();

    // IsRun, Destination, GATag and GALogIntr are seen at once; vector and page are not.
    let moved = VALID | GUEST | IS_RUN | 0x77 << 8;
    storage.set_remapping(3, moved, 0x66 | Storage::page_address(1) | 0x02 << 56);
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(rig.machine.doorbells().take(), Some(0x0200_0077));
    assert_eq!((storage.vcpu(0).irr(), storage.vcpu(1).irr()), (vec![0x55], vec![]));

    rig.machine.iommu.invalidate_interrupt_table();
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(storage.vcpu(1).irr(), [0x66]);
}

#[test]
fn a_vcpu_that_stops_between_the_steps_is_logged() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, low(IS_RUN), high());
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.step(0);
    rig.machine.iommu.step(0);
    assert_eq!(storage.vcpu(0).irr(), [0x55], "requested, and not announced yet");
    storage.set_remapping(3, low(GA_LOG), high());
    rig.machine.iommu.step(0);
    assert_eq!(rig.machine.iommu.in_flight(), 0);
    assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL), 8);
}

#[test]
fn announcements_by_physical_interrupt() {
    for (offered, flags, sent) in [(true, 0, true), (true, NO_GAPPI, false), (false, 0, false)] {
        let storage = Storage::new(1);
        let mut rig = rig_with_log(&storage);
        rig.machine.iommu.physical_announcements = offered;
        let entry = storage.set_remapping(3, low(GA_LOG | flags), high());
        rig.machine.iommu.interrupt(0, entry);
        rig.machine.iommu.finish();
        let wanted = PhysicalInterrupt { destination: 1, vector: 0xcd };
        assert_eq!(rig.machine.bus().take(), sent.then_some(wanted));
        assert_eq!(rig.machine.iommu.log.read(register::LOG_TAIL) == 8, !sent);
    }
}

#[test]
fn entries_that_block_the_interrupt() {
    for (low, high, fault) in [
        (GUEST, high(), RemapFault::NotEnabled),
        (VALID | GUEST | 1 << 3, high(), RemapFault::Reserved),
        (VALID | GUEST, high() | 1 << 8, RemapFault::Reserved),
        (VALID | GUEST, high() | 1 << 52, RemapFault::Reserved),
        (VALID | GUEST, Storage::page_address(0) | 15, RemapFault::Vector),
        (VALID | 4 << 2, 0x55, RemapFault::Type),
        (VALID | 1 << 6, 0x55, RemapFault::Type),
    ] {
        let storage = Storage::new(1);
        let mut rig = rig_with_log(&storage);
        let entry = storage.set_remapping(3, low, high);
        rig.machine.iommu.interrupt(0, entry);
        rig.machine.iommu.finish();
        assert_eq!(rig.machine.iommu.faults(), [fault]);
        assert_eq!(storage.vcpu(0).irr(), []);
    }
}

#[test]
fn outside_guest_mode_the_host_gets_the_interrupt() {
    let storage = Storage::new(1);
    let mut rig = rig_with_log(&storage);
    let entry = storage.set_remapping(3, VALID | 1 << 8, 0x55);
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    let sent = rig.machine.bus().take();
    assert_eq!(sent, Some(PhysicalInterrupt { destination: 1, vector: 0x55 }));
}

/// An entry worked out by hand from the manual's layout.
#[test]
fn worked_example() {
    let storage = Storage::new(1);
    let page = 0x12_3456_7000;
    let mut rig = rig_with_log(&storage);
    rig.machine.memory().add_dwords(page, storage.vcpu(0).words());
    let low = 0xabcd << 32 | 0x00_0023 << 8 | 0xc5;
    let high = 0x55 | page | 0x01 << 56;
    let entry = storage.set_remapping(3, low, high);
    rig.machine.iommu.interrupt(0, entry);
    rig.machine.iommu.finish();
    assert_eq!(storage.vcpu(0).irr(), [0x55]);
    assert_eq!(rig.machine.doorbells().take(), Some(0x0100_0023));
}
