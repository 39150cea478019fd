//! Named scenarios of the timer.

use vlapic_core::{Delivery, LvtEntry, Profile, Register};
use vlapic_tests::plain::Plain;

const TSC_DEADLINE: u32 = 0x6E0;

fn deadline_timer() -> Plain {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x4_0041);
    plain
}

#[test]
fn tsc_deadline_delta() {
    let mut plain = deadline_timer();
    plain.now = 1000;
    plain.set_msr(TSC_DEADLINE, 1);
    assert_eq!(plain.apic.acknowledge(), 0x41);
    plain.set(Register::Eoi, 0);
    assert_eq!((plain.irr(), plain.rdmsr(TSC_DEADLINE)), (vec![], Ok(0)));
    plain.set_msr(TSC_DEADLINE, 2000);
    plain.set_msr(TSC_DEADLINE, 0);
    let _ = plain.apic.prepare(5000);
    assert_eq!(plain.irr(), []);
    plain.set_msr(TSC_DEADLINE, u64::MAX);
    assert_eq!(plain.apic.prepare(u64::MAX - 1).deadline, Some(u64::MAX));
}

#[test]
fn timer_mode_switch_keeps_running() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::DivideConfiguration, 0xB);
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 1000);
    plain.now = 300;
    let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
    assert_eq!(plain.load(0x390), 700);
}

#[test]
fn tdcr_immediate() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::DivideConfiguration, 0xB);
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 1000);
    plain.now = 500;
    plain.set(Register::DivideConfiguration, 1);
    plain.now = 540;
    assert_eq!(plain.load(0x390), 490);
}

#[test]
fn tmcct_after_oneshot_expiry() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x41);
    plain.set(Register::InitialCount, 10);
    for now in [20, 21, 1_000_000, u64::MAX] {
        plain.now = now;
        assert_eq!(plain.load(0x390), 0);
    }
}

#[test]
fn init_clears_tdt() {
    let mut plain = deadline_timer();
    plain.set_msr(TSC_DEADLINE, 500);
    let _ = plain.slot.receive(Delivery::Init);
    assert!(plain.apic.take_event().is_some());
    assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
    plain.enable();
    let _ = plain.write_lvt(LvtEntry::Timer, 0x4_0041);
    let _ = plain.apic.prepare(1000);
    assert_eq!(plain.irr(), []);
}

#[test]
fn viridian_periodic_zero() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
    plain.set(Register::InitialCount, 0);
    assert_eq!(plain.apic.prepare(u64::MAX).deadline, None);
    // A count that runs and an initial count scribbled away under it: no endless loop, no panic.
    plain.set(Register::InitialCount, 5);
    plain.slot.page().write(Register::InitialCount, 0);
    let _ = plain.apic.prepare(u64::MAX);
    assert_eq!(plain.load(0x390), 0);
}

#[test]
fn a_long_sleep_is_one_interrupt_and_no_loop() {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::DivideConfiguration, 0xB);
    let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
    plain.set(Register::InitialCount, 1);
    let prepared = plain.apic.prepare(1 << 60);
    assert_eq!((plain.irr(), prepared.deadline), (vec![0x41], Some((1 << 60) + 1)));
}

#[test]
fn time_may_run_backwards() {
    let mut plain = Plain::enabled(Profile::intel());
    let _ = plain.write_lvt(LvtEntry::Timer, 0x2_0041);
    plain.now = 1_000_000;
    plain.set(Register::InitialCount, 1000);
    for now in [0, 999_999, 1_001_000, 5, u64::MAX, 0] {
        plain.now = now;
        assert!(plain.load(0x390) <= 1000);
        let _ = plain.apic.prepare(now);
    }
}
