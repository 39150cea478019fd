//! The APIC timer, by the guest's own TSC: never early, never twice, never when it is masked or stopped.

use core::arch::x86_64::_rdtsc;

use super::guest_apic::{
    CURRENT_COUNT, DIVIDE_CONFIGURATION, INITIAL_COUNT, LVT_TIMER, SOON, ensure,
};
use super::stage::alone;
use super::{Case, guests};
use crate::guest::{Context, apic, cpu};
use crate::machine::identity::{self, Machine};

pub(super) const CASES: &[Case] = &[
    Case { name: "timer-one-shot", cpus: 1, applies: |_| true, run: |at| alone(at, one_shot) },
    Case { name: "timer-masked", cpus: 1, applies: |_| true, run: |at| alone(at, masked) },
    Case { name: "timer-periodic", cpus: 1, applies: |_| true, run: |at| alone(at, periodic) },
    Case { name: "timer-deadline", cpus: 1, applies: |_| true, run: |at| alone(at, deadline) },
    Case { name: "timer-halted", cpus: 1, applies: |_| true, run: |at| alone(at, halted) },
];

const VECTOR: u8 = 0x33;
const MASKED: u64 = 1 << 16;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 1 << 18;
const TSC_DEADLINE_MSR: u32 = 0x6e0;

/// TSC ticks of one run of the timer: a few exits long on an emulator whose TSC counts what it has emulated; elsewhere some
/// milliseconds, since other work of the host may come between two instructions of the guest.
fn ticks() -> u64 {
    if identity::machine() == Machine::Bochs { 60_000 } else { 30_000_000 }
}

const ROUNDS: u32 = 10;

fn now() -> u64 {
    // SAFETY: RDTSC has no side effects, and guests here may use it.
    unsafe { _rdtsc() }
}

fn pause(ticks: u64) {
    let start = now();
    while now() - start < ticks {
        core::hint::spin_loop();
    }
}

/// Enables the APIC, the timer's clock the TSC itself, and writes its LVT entry.
fn begin(context: &Context, argument: u64, lvt: u64) -> bool {
    guests::enable_apic(context, guests::mode(argument)).is_ok()
        && apic::write(context, DIVIDE_CONFIGURATION, 0b1011).is_ok()
        && entry(context, lvt)
}

fn entry(context: &Context, lvt: u64) -> bool {
    apic::write(context, LVT_TIMER, lvt | u64::from(VECTOR)).is_ok()
}

fn start(context: &Context, count: u64) -> bool {
    apic::write(context, INITIAL_COUNT, count).is_ok()
}

fn current(context: &Context) -> u64 {
    apic::read(context, CURRENT_COUNT).unwrap_or(u64::MAX)
}

/// Waits for interrupt number `count`, and says when it had come.
fn fired(context: &Context, count: u32) -> Option<u64> {
    let came = cpu::wait_long(SOON, || context.count(VECTOR) >= count);
    (came && context.count(VECTOR) == count).then(now)
}

/// Lets enough time pass for a timer to fire again, and sees that it does not.
fn stays(context: &Context, count: u32) -> bool {
    pause(2 * ticks());
    context.count(VECTOR) == count
}

/// Does `work` again until it took less than `within` ticks, after which what it set going would have come: an emulator's host
/// may stop the guest for longer than that. Says how many interrupts had come before.
fn in_time(context: &Context, within: u64, work: impl Fn() -> bool) -> Option<u32> {
    for _ in 0..20 {
        let (count, before) = (context.count(VECTOR), now());
        if !work() {
            return None;
        }
        if now() - before < within {
            return Some(count);
        }
        pause(2 * within);
    }
    None
}

/// Whether nothing comes of what `work` starts and, within `within` ticks, undoes.
fn undone(context: &Context, within: u64, work: impl Fn() -> bool) -> bool {
    in_time(context, within, work).is_some_and(|count| stays(context, count))
}

extern "C" fn one_shot(context: &'static Context, argument: u64) -> u64 {
    ensure!(begin(context, argument, 0) && current(context) == 0);
    for round in 1..=ROUNDS {
        let before = now();
        ensure!(start(context, ticks()));
        let (first, second) = (current(context), current(context));
        ensure!(second <= first && first <= ticks());
        ensure!(first >= ticks().saturating_sub(now() - before));
        let Some(end) = fired(context, round) else { return u64::from(line!()) };
        ensure!(end - before >= ticks() && current(context) == 0);
    }
    ensure!(stays(context, ROUNDS));
    ensure!(apic::read(context, INITIAL_COUNT) == Ok(ticks()));
    // Divided by 4, it takes four times as long.
    ensure!(apic::write(context, DIVIDE_CONFIGURATION, 0b0001).is_ok());
    let before = now();
    ensure!(start(context, ticks()));
    ensure!(fired(context, ROUNDS + 1).is_some_and(|end| end - before >= 4 * ticks()));
    // Stopped, it does not fire.
    let work = || start(context, ticks()) && start(context, 0) && current(context) == 0;
    ensure!(undone(context, 4 * ticks(), work));
    pause(3 * ticks());
    ensure!(stays(context, context.count(VECTOR)));
    0
}

extern "C" fn masked(context: &'static Context, argument: u64) -> u64 {
    // It counts, but nothing comes, neither then nor when the mask is taken away.
    ensure!(begin(context, argument, MASKED) && start(context, ticks()));
    ensure!(stays(context, 0) && current(context) == 0);
    ensure!(entry(context, 0) && stays(context, 0));
    // Masked on the way.
    let work = || entry(context, 0) && start(context, ticks()) && entry(context, MASKED);
    ensure!(undone(context, ticks(), work));
    // Unmasked on the way.
    let work = || entry(context, MASKED) && start(context, 10 * ticks()) && entry(context, 0);
    let Some(count) = in_time(context, 10 * ticks(), work) else { return u64::from(line!()) };
    ensure!(fired(context, count + 1).is_some());
    // Disabled by software, the entry is masked, and cannot be unmasked.
    let svr = |value| apic::write(context, apic::SVR, value).is_ok();
    let work = || svr(0x1ff) && entry(context, 0) && start(context, ticks()) && svr(0xff);
    ensure!(undone(context, ticks(), work));
    let count = context.count(VECTOR);
    ensure!(entry(context, 0));
    ensure!(apic::read(context, LVT_TIMER) == Ok(MASKED | u64::from(VECTOR)));
    ensure!(stays(context, count) && svr(0x1ff) && stays(context, count));
    0
}

extern "C" fn periodic(context: &'static Context, argument: u64) -> u64 {
    ensure!(begin(context, argument, PERIODIC));
    let before = now();
    ensure!(start(context, ticks()));
    for round in 1..=ROUNDS {
        ensure!(cpu::wait_long(SOON, || context.count(VECTOR) >= round));
        // Periods that passed unseen come as one, so it may be late, but not early.
        ensure!(now() - before >= u64::from(context.count(VECTOR).min(round)) * ticks());
        ensure!((1..=ticks()).contains(&current(context)));
    }
    ensure!(start(context, 0) && current(context) == 0);
    let count = context.count(VECTOR);
    ensure!(u64::from(count) <= (now() - before) / ticks() && stays(context, count));
    // A periodic count that becomes one-shot fires once more.
    let work = || entry(context, PERIODIC) && start(context, 4 * ticks()) && entry(context, 0);
    let Some(count) = in_time(context, 4 * ticks(), work) else { return u64::from(line!()) };
    ensure!(fired(context, count + 1).is_some() && stays(context, count + 1));
    0
}

fn set_deadline(time: u64) -> bool {
    cpu::write_msr(TSC_DEADLINE_MSR, time).is_ok()
}

fn deadline_is(time: u64) -> bool {
    cpu::read_msr(TSC_DEADLINE_MSR) == Ok(time)
}

extern "C" fn deadline(context: &'static Context, argument: u64) -> u64 {
    // Outside its mode the register takes nothing.
    ensure!(begin(context, argument, 0) && set_deadline(now() + ticks()) && deadline_is(0));
    ensure!(entry(context, DEADLINE) && stays(context, 0));
    for round in 1..=ROUNDS {
        let time = now() + ticks();
        ensure!(set_deadline(time));
        ensure!(deadline_is(time) || now() >= time);
        ensure!(fired(context, round).is_some_and(|end| end >= time) && deadline_is(0));
    }
    // A time that has passed fires at once, and once.
    ensure!(set_deadline(1) && fired(context, ROUNDS + 1).is_some() && stays(context, ROUNDS + 1));
    // Zero disarms; so does leaving the mode.
    ensure!(undone(context, ticks(), || set_deadline(now() + ticks()) && set_deadline(0)));
    let work =
        || entry(context, DEADLINE) && set_deadline(now() + 2 * ticks()) && entry(context, 0);
    ensure!(in_time(context, 2 * ticks(), work).is_some());
    let count = context.count(VECTOR);
    ensure!(entry(context, DEADLINE) && deadline_is(0) && stays(context, count));
    // The counter is no part of this mode.
    ensure!(start(context, ticks()) && current(context) == 0 && stays(context, count));
    ensure!(apic::read(context, INITIAL_COUNT) == Ok(0));
    0
}

extern "C" fn halted(context: &'static Context, argument: u64) -> u64 {
    ensure!(begin(context, argument, 0));
    let sleep = |count: u32| {
        while context.count(VECTOR) < count {
            cpu::interrupts_off();
            if context.count(VECTOR) < count {
                cpu::wait_for_interrupt();
            }
        }
        context.count(VECTOR) == count
    };
    for round in 1..=ROUNDS {
        let before = now();
        ensure!(start(context, ticks()) && sleep(round) && now() - before >= ticks());
    }
    ensure!(entry(context, DEADLINE));
    for round in ROUNDS + 1..=2 * ROUNDS {
        let time = now() + ticks();
        ensure!(set_deadline(time) && sleep(round) && now() >= time);
    }
    cpu::interrupts_on();
    ensure!(stays(context, 2 * ROUNDS));
    0
}
