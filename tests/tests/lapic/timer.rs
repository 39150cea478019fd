//! The timer through its registers.

use vlapic_core::{ClockRatio, Effect, LvtEntry, Profile, Register};
use vlapic_tests::plain::Plain;

const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
const VECTOR: u32 = 0x41;
const TSC_DEADLINE: u32 = 0x6E0;

fn timer(lvt: u32) -> Plain {
    let mut plain = Plain::enabled(Profile::intel());
    plain.set(Register::DivideConfiguration, 0xB);
    assert_eq!(plain.write_lvt(LvtEntry::Timer, lvt), Effect::TimerChanged);
    plain
}

/// Whether the timer has interrupted by `now`; takes and ends the interrupt.
fn fires(plain: &mut Plain, now: u64) -> bool {
    plain.now = now;
    let _ = plain.apic.prepare(now);
    let fired = plain.apic.nominate().is_some();
    if fired {
        assert_eq!(u32::from(plain.apic.acknowledge()), VECTOR);
        assert_eq!(plain.write(Register::Eoi, 0), Effect::None, "an edge");
    }
    fired
}

fn count(plain: &mut Plain, now: u64) -> u32 {
    plain.now = now;
    plain.read(Register::CurrentCount)
}

#[test]
fn one_shot() {
    let mut plain = timer(VECTOR);
    plain.now = 1000;
    assert_eq!(plain.write(Register::InitialCount, 100), Effect::TimerChanged);
    assert_eq!(plain.apic.next_deadline(), Some(1100));
    assert_eq!((count(&mut plain, 1000), count(&mut plain, 1099)), (100, 1));
    assert!(!fires(&mut plain, 1099));
    assert!(fires(&mut plain, 1100));
    assert!(!fires(&mut plain, 9999));
    assert_eq!(count(&mut plain, 9999), 0);
    assert_eq!(plain.read(Register::InitialCount), 100);
    assert_eq!(plain.apic.next_deadline(), None);
}

#[test]
fn periodic() {
    let mut plain = timer(PERIODIC | VECTOR);
    plain.set(Register::InitialCount, 100);
    for period in 1..50 {
        assert!(!fires(&mut plain, 100 * period - 1));
        assert!(fires(&mut plain, 100 * period));
        assert_eq!(count(&mut plain, 100 * period + 30), 70);
    }
    plain.set(Register::InitialCount, 0);
    assert!(!fires(&mut plain, 1_000_000));
    assert_eq!(plain.apic.next_deadline(), None);
}

#[test]
fn every_divider() {
    for (code, divider) in
        [(0, 2u64), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)]
    {
        let mut plain = timer(VECTOR);
        plain.set(Register::DivideConfiguration, code);
        plain.set(Register::InitialCount, 10);
        assert_eq!(plain.apic.next_deadline(), Some(10 * divider), "{code:#x}");
        assert_eq!(count(&mut plain, 5 * divider), 5);
    }
}

#[test]
fn the_clock_ratio() {
    let profile = Profile::intel().with_timer_clock(ClockRatio { tsc: 84, bus: 1 });
    let mut plain = Plain::enabled(profile);
    plain.set(Register::DivideConfiguration, 0xB);
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    plain.set(Register::InitialCount, 1000);
    assert_eq!(plain.apic.next_deadline(), Some(84_000));
    assert_eq!(count(&mut plain, 42_000), 500);
    assert!(!fires(&mut plain, 83_999));
    assert!(fires(&mut plain, 84_000));
}

#[test]
fn changing_between_one_shot_and_periodic_keeps_the_count() {
    let mut plain = timer(VECTOR);
    plain.set(Register::InitialCount, 100);
    plain.now = 40;
    let _ = plain.write_lvt(LvtEntry::Timer, PERIODIC | VECTOR);
    assert_eq!(count(&mut plain, 50), 50, "no reload");
    assert!(fires(&mut plain, 100));
    assert_eq!(count(&mut plain, 110), 90, "but now it does");
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    assert_eq!(count(&mut plain, 120), 80);
    assert!(fires(&mut plain, 200));
    assert!(!fires(&mut plain, 300));
    let _ = plain.write_lvt(LvtEntry::Timer, PERIODIC | VECTOR);
    assert_eq!(count(&mut plain, 310), 0, "a stopped count does not start");
    assert!(!fires(&mut plain, 500));
}

#[test]
fn a_masked_timer_counts() {
    let mut plain = timer(MASKED | VECTOR);
    plain.set(Register::InitialCount, 100);
    assert_eq!(count(&mut plain, 60), 40);
    assert!(!fires(&mut plain, 100));
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    assert!(!fires(&mut plain, 200), "the expiry was lost");
    let mut plain = timer(MASKED | PERIODIC | VECTOR);
    plain.set(Register::InitialCount, 100);
    assert!(!fires(&mut plain, 250));
    let _ = plain.write_lvt(LvtEntry::Timer, PERIODIC | VECTOR);
    assert!(!fires(&mut plain, 299));
    assert!(fires(&mut plain, 300));
}

#[test]
fn software_disable_masks_and_does_not_stop() {
    let mut plain = timer(PERIODIC | VECTOR);
    plain.set(Register::InitialCount, 100);
    plain.now = 50;
    plain.set(Register::Svr, 0xFF);
    assert!(!fires(&mut plain, 130));
    plain.set(Register::Svr, 0x1FF);
    assert_eq!(count(&mut plain, 140), 60, "the phase is kept");
    assert!(!fires(&mut plain, 250), "still masked");
    let _ = plain.write_lvt(LvtEntry::Timer, PERIODIC | VECTOR);
    assert!(fires(&mut plain, 300));
}

#[test]
fn a_deadline_fires_once_and_clears_itself() {
    for msr in [false, true] {
        let mut plain = timer(DEADLINE | VECTOR);
        if msr {
            plain.enter_x2apic();
        }
        assert_eq!(plain.wrmsr(TSC_DEADLINE, 500), Ok(Effect::TimerChanged));
        assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(500));
        assert_eq!(plain.apic.next_deadline(), Some(500));
        assert!(!fires(&mut plain, 499));
        assert!(fires(&mut plain, 500));
        assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
        assert!(!fires(&mut plain, 1000));
        plain.set_msr(TSC_DEADLINE, 700);
        assert_eq!(plain.irr(), [0x41], "past when written: at once");
        assert!(fires(&mut plain, 1000));
        plain.set_msr(TSC_DEADLINE, 2000);
        plain.set_msr(TSC_DEADLINE, 3000);
        assert!(!fires(&mut plain, 2500), "replaced");
        plain.set_msr(TSC_DEADLINE, 0);
        assert!(!fires(&mut plain, 4000), "disarmed");
    }
}

#[test]
fn counts_and_deadlines_ignore_each_others_mode() {
    let mut plain = timer(DEADLINE | VECTOR);
    plain.set(Register::InitialCount, 100);
    assert_eq!(plain.read(Register::InitialCount), 0);
    assert_eq!(count(&mut plain, 10), 0);
    assert!(!fires(&mut plain, 1000));
    for lvt in [VECTOR, PERIODIC | VECTOR] {
        let mut plain = timer(lvt);
        plain.set_msr(TSC_DEADLINE, 500);
        assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
        assert!(!fires(&mut plain, 1000));
    }
}

#[test]
fn into_and_out_of_deadline_mode_disarms() {
    let mut plain = timer(DEADLINE | VECTOR);
    plain.set_msr(TSC_DEADLINE, 500);
    let _ = plain.write_lvt(LvtEntry::Timer, DEADLINE | MASKED | VECTOR);
    assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(500), "the same mode");
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
    let _ = plain.write_lvt(LvtEntry::Timer, DEADLINE | VECTOR);
    assert!(!fires(&mut plain, 1000));
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    plain.set(Register::InitialCount, 100);
    let _ = plain.write_lvt(LvtEntry::Timer, DEADLINE | VECTOR);
    let _ = plain.write_lvt(LvtEntry::Timer, VECTOR);
    assert_eq!(count(&mut plain, 1010), 0);
    assert!(!fires(&mut plain, 5000));
}

#[test]
fn the_reserved_mode_is_no_timer() {
    let mut plain = timer(DEADLINE | PERIODIC | VECTOR);
    plain.set(Register::InitialCount, 100);
    plain.set_msr(TSC_DEADLINE, 50);
    assert!(!fires(&mut plain, 1000));
    assert_eq!(plain.apic.next_deadline(), None);
}

#[test]
fn without_deadline_support_bit_18_is_not_there() {
    let mut plain = Plain::enabled(Profile::intel().with_tsc_deadline(false));
    let _ = plain.write_lvt(LvtEntry::Timer, DEADLINE | PERIODIC | VECTOR);
    assert_eq!(plain.load(0x320), PERIODIC | VECTOR);
    plain.slot.page().store(0x320, DEADLINE | VECTOR);
    plain.set(Register::DivideConfiguration, 0xB);
    plain.set(Register::InitialCount, 10);
    assert!(fires(&mut plain, 10), "a scribbled bit 18 is not believed");
}

#[test]
fn the_divider_may_change_while_counting() {
    let mut plain = timer(VECTOR);
    plain.set(Register::InitialCount, 100);
    plain.now = 50;
    assert_eq!(plain.write(Register::DivideConfiguration, 0), Effect::TimerChanged);
    assert_eq!(count(&mut plain, 60), 45);
    assert_eq!(plain.apic.next_deadline(), Some(150));
}

#[test]
fn a_write_that_hardware_stored_starts_the_timer_too() {
    let mut plain = timer(VECTOR);
    plain.slot.page().write(Register::InitialCount, 100);
    assert_eq!(plain.apic.after_write(Register::InitialCount, 7), Effect::TimerChanged);
    assert_eq!(plain.apic.next_deadline(), Some(107));
}

#[test]
fn an_absent_apic_has_no_deadline() {
    let mut plain = timer(DEADLINE | VECTOR);
    plain.set_msr(TSC_DEADLINE, 500);
    plain.set_msr(0x1B, 0xFEE0_0100);
    assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
    plain.set_msr(TSC_DEADLINE, 500);
    assert_eq!(plain.rdmsr(TSC_DEADLINE), Ok(0));
    assert_eq!(plain.apic.prepare(1000).deadline, None);
}
