//! All CPUs: bringing them up, and giving them something to do.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::acpi::ApicIds;
use super::{apic, cpu, interrupts, pit};
use crate::boot;

pub(crate) use super::cpu::this_cpu;

/// CPUs beyond so many stay asleep.
pub(crate) const MAX_CPUS: usize = 32;

/// Ends the HLT of a parked CPU; sent by [`run_on`].
pub(crate) const WAKE_VECTOR: u8 = 0xf0;

/// How many CPUs the firmware has told of; zero where it has not.
static LISTED: AtomicUsize = AtomicUsize::new(0);
static ONLINE: AtomicUsize = AtomicUsize::new(1);
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// The work of each CPU, a `fn(usize)`; zero when it has none.
static WORK: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// How many CPUs are up. They are numbered from 0, the one that started the machine.
pub(crate) fn cpu_count() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// How many CPUs should be up by the firmware's list, if there is one.
pub(crate) fn listed() -> Option<usize> {
    Some(LISTED.load(Ordering::Relaxed)).filter(|&count| count != 0)
}

/// The physical APIC ID of a CPU.
pub(crate) fn apic_id(cpu: usize) -> u32 {
    APIC_IDS[cpu].load(Ordering::Relaxed)
}

/// Starts `work` on another CPU, with the CPU's number as argument, and returns at once. The CPU must be idle.
pub(crate) fn run_on(cpu: usize, work: fn(usize)) {
    assert!(cpu != this_cpu() && cpu < cpu_count(), "no such other cpu");
    // Release pairs with the Acquire in `park`; `wait_idle` pairs with its Release.
    let idle = WORK[cpu].compare_exchange(0, work as usize, Ordering::Release, Ordering::Relaxed);
    assert!(idle.is_ok(), "cpu {cpu} is busy");
    apic::send(apic_id(cpu), WAKE_VECTOR);
}

pub(crate) fn is_idle(cpu: usize) -> bool {
    WORK[cpu].load(Ordering::Acquire) == 0
}

/// Waits until a CPU has finished its work, and sees all that the work wrote.
pub(crate) fn wait_idle(cpu: usize) {
    while !is_idle(cpu) {
        core::hint::spin_loop();
    }
}

/// Makes the CPU that started the machine a CPU like the others.
pub(crate) fn initialise_first() {
    cpu::initialise_gdt();
    interrupts::initialise();
    set_up(0);
}

/// Starts all other CPUs, by the list of the firmware if there is one, and waits for them.
pub(crate) fn start_others(ids: Option<&ApicIds>) {
    let own = apic::id();
    let expected =
        ids.map_or(MAX_CPUS, |ids| ids.iter().filter(|&id| id != own).count() + 1).min(MAX_CPUS);
    LISTED.store(ids.map_or(0, |_| expected), Ordering::Relaxed);
    for stack in &boot::AP_STACKS[1..expected] {
        stack.store(cpu::stack_top(cpu::STACK_FRAMES), Ordering::Release);
    }
    let page = boot::install_trampoline();
    let each = |send: &dyn Fn(Option<u32>)| match ids {
        Some(ids) => {
            ids.iter().filter(|&id| id != own).take(MAX_CPUS - 1).for_each(|id| send(Some(id)))
        }
        None => send(None),
    };
    // INIT, 10 ms, start-up, and a second one for a CPU that has missed it (SDM Vol. 3A 9.4.4.1). An emulator may run the
    // others late, so arrival is counted; the time only bounds the wait.
    each(&apic::send_init);
    pit::delay(10_000);
    each(&|id| apic::send_startup(id, page));
    if !arrived(expected, 100) {
        each(&|id| apic::send_startup(id, page));
        arrived(expected, if ids.is_some() { 5_000 } else { 100 });
    }
}

fn arrived(expected: usize, milliseconds: u32) -> bool {
    (0..milliseconds).any(|_| {
        if cpu_count() < expected {
            pit::delay(1_000);
        }
        cpu_count() >= expected
    })
}

/// The entry code calls this once on each CPU but the first.
pub(crate) extern "C" fn application_processor(cpu: usize) -> ! {
    set_up(cpu);
    // Numbers are handed out in order of arrival, but the counter must not pass a CPU that is not ready.
    while ONLINE.compare_exchange(cpu, cpu + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        core::hint::spin_loop();
    }
    park(cpu)
}

fn set_up(cpu: usize) {
    cpu::load(cpu);
    interrupts::load();
    apic::enable();
    APIC_IDS[cpu].store(apic::id(), Ordering::Relaxed);
    interrupts::enable();
}

/// Sleeps until there is work. A parked CPU halts: one that spins takes an emulator's time away from the others.
fn park(cpu: usize) -> ! {
    loop {
        let work = WORK[cpu].load(Ordering::Acquire);
        if work == 0 {
            interrupts::wait_unless(|| !is_idle(cpu));
            continue;
        }
        // SAFETY: only `run_on` stores anything but zero, and what it stores is a `fn(usize)`.
        let work = unsafe { core::mem::transmute::<usize, fn(usize)>(work) };
        work(cpu);
        WORK[cpu].store(0, Ordering::Release);
    }
}
