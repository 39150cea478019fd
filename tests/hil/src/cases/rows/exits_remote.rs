//! VM exits of an interrupt that comes from another CPU: from a device, and from another vCPU.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use super::access::ignore;
use super::probe::{self, Probe};
use super::remote::{self, ask, wait};
use crate::cases::{Case, Failure, Setting, check, equal, guests, record};
use crate::guest::{Context, cpu};
use crate::hypervisor::{Level, VirtualMachine};
use crate::println;
use crate::vmx::vcpu::Current;
use crate::vmx::{Exit, Reason};

pub(super) const CASES: &[Case] = &[
    Case { name: "exits-posted", cpus: 2, applies: |_| true, run: posted },
    Case { name: "exits-cross-ipi", cpus: 2, applies: |_| true, run: cross_ipi },
];

const VECTOR: u8 = 0x51;
const TIMES: u64 = 16;
/// A turn of the guest that ends by the hypervisor's timer hides exits, so such a round does not count.
const ROUNDS: u64 = 4 * TIMES;

/// What an interrupt from elsewhere costs the vCPU that takes it: an exit for the physical interrupt that tells of it, unless
/// it is posted, and one for the EOI without virtual-interrupt delivery.
const fn to_receive(level: Level) -> u64 {
    match level {
        Level::Posted => 0,
        Level::VirtualInterruptDelivery => 1,
        _ => 2,
    }
}

/// Exits of [`TIMES`] operations.
static RECEIVED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

fn report(
    setting: Setting,
    name: &'static str,
    count: &AtomicU64,
    each: u64,
) -> Result<(), Failure> {
    let (level, mode) = (setting.level.name(), setting.mode.name());
    let (count, expect) = (count.load(Ordering::Relaxed), each * TIMES);
    println!(
        "HIL-EXITS op={name} level={level} mode={mode} count={count} per={TIMES} expect={expect}"
    );
    equal(name, count, expect)
}

fn posted(setting: Setting) -> Result<(), Failure> {
    let post = |machine, _| remote::post(machine, VECTOR);
    remote::run(setting, take_posts, post)?;
    report(setting, "posted", &RECEIVED, to_receive(setting.level))
}

fn take_posts(probe: &Probe) -> Result<(), Failure> {
    cpu::interrupts_on();
    let exits = || record::total() + remote::interrupts();
    let (mut rounds, mut sum) = (0, 0);
    for round in 1..=ROUNDS {
        if rounds == TIMES {
            break;
        }
        let (turns, before) = (remote::turns(), exits());
        ask(0);
        check(wait(|| u64::from(probe.context.count(VECTOR)) >= round), "a post was not taken")?;
        if remote::turns() == turns {
            rounds += 1;
            sum += exits() - before;
        }
    }
    RECEIVED.store(sum, Ordering::Relaxed);
    equal("undisturbed rounds", rounds, TIMES)
}

/// Words of the second vCPU's context: interrupts that its program has seen to be over, and its leave to end.
const OVER: usize = 0;
const END: usize = 1;

/// vCPU 0, on this CPU, sends to vCPU 1, on CPU 1.
fn cross_ipi(setting: Setting) -> Result<(), Failure> {
    let mut config = probe::config(setting);
    config.vcpus = 2;
    config.at_exit = watch;
    let machine = Cell::new(None::<&'static VirtualMachine>);
    let result = probe::run_with(config, setting, send, |vm| {
        machine.set(Some(vm));
        vm.set_program(1, take_ipis, guests::argument(setting.mode));
        vm.start_on(1, 1);
        Ok(())
    });
    let Some(vm) = machine.get() else { return result };
    if result.is_err() {
        vm.stop(1);
    }
    let ended = vm.join(1, 1);
    result?;
    equal("second program's result", ended?, 0u64)?;
    // One exit, for the write that sends.
    report(setting, "cross-ipi-send", &SENT, 1).and(report(
        setting,
        "cross-ipi-receive",
        &RECEIVED,
        to_receive(setting.level),
    ))
}

/// Exits of vCPU 1, and ends of turns of either.
static OTHERS: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);

fn watch(machine: &VirtualMachine, vcpu: usize, exit: &Exit, current: &mut Current<'_>) {
    match (exit.reason, vcpu) {
        (Reason::PreemptionTimer, _) => {
            TURNS.fetch_add(1, Ordering::Release);
        }
        (_, 0) => record::observe(machine, vcpu, exit, current),
        (Reason::Vmcall, _) => {}
        _ => {
            OTHERS.fetch_add(1, Ordering::Release);
        }
    }
}

extern "C" fn take_ipis(context: &'static Context, argument: u64) -> u64 {
    if guests::enable_apic(context, guests::mode(argument)).is_err() {
        return 1;
    }
    while context.word(END).load(Ordering::Acquire) == 0 {
        // One more than were taken, so that 0 says that it has not come so far.
        context.word(OVER).store(u64::from(context.count(VECTOR)) + 1, Ordering::Release);
        core::hint::spin_loop();
    }
    0
}

fn send(probe: &Probe) -> Result<(), Failure> {
    const ICR_LOW: u16 = 0x300;
    const ICR_HIGH: u16 = 0x310;
    const INIT: u32 = 0x4500;
    const STARTUP: u32 = 0x4608;
    const FIXED: u32 = 0x4000 | VECTOR as u32;
    let receiver = probe.machine.context(1);
    let command = |value: u32| {
        if probe.x2apic() {
            ignore(cpu::write_msr(0x830, 1 << 32 | u64::from(value)));
        } else {
            ignore(crate::guest::apic::write(probe.context, ICR_LOW, value.into()));
        }
    };
    if !probe.x2apic() {
        ignore(crate::guest::apic::write(probe.context, ICR_HIGH, 1 << 24));
    }
    check(wait(|| probe.machine.slots[1].present()), "the second vCPU does not come up")?;
    command(INIT);
    command(STARTUP);
    let over = |count| wait(|| receiver.word(OVER).load(Ordering::Acquire) > count);
    check(over(0), "the second program does not start")?;
    let (mut rounds, mut sent, mut received) = (0, 0, 0);
    for round in 1..=ROUNDS {
        if rounds == TIMES {
            break;
        }
        let turns = TURNS.load(Ordering::Acquire);
        let before = OTHERS.load(Ordering::Acquire);
        record::clear();
        command(FIXED);
        let exits = record::total();
        check(over(round), "an IPI was not taken")?;
        if TURNS.load(Ordering::Acquire) == turns {
            rounds += 1;
            sent += exits;
            received += OTHERS.load(Ordering::Acquire) - before;
        }
    }
    receiver.word(END).store(1, Ordering::Release);
    SENT.store(sent, Ordering::Relaxed);
    RECEIVED.store(received, Ordering::Relaxed);
    equal("undisturbed rounds", rounds, TIMES)
}
