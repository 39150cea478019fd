//! The machine layer's own cases: CPUs, interrupts, faults, x2APIC mode.

use core::sync::atomic::{AtomicU32, Ordering};

use super::apic::{self, Mode};
use super::command_line::CommandLine;
use super::identity::Machine;
use super::{identity, interrupts, msr, pit, smp};

/// How a case ends that was not run to a pass or a failure.
pub(crate) enum Outcome {
    Pass,
    Skip(&'static str),
    Fail(&'static str),
}

/// A case by its name.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&CommandLine) -> Outcome,
}

/// Run first: what every other case stands on.
pub(crate) const CASES: &[Case] = &[
    Case { name: "machine-cpus", run: all_cpus_up },
    Case { name: "machine-work", run: work_runs_on_its_cpu },
    Case { name: "machine-ipi", run: ipi_received_once },
    Case { name: "machine-pending", run: pending_then_in_service },
    Case { name: "machine-nmi", run: nmi_received_once },
    Case { name: "machine-timer", run: timer_interrupts },
    Case { name: "machine-msr-fault", run: msr_fault_is_a_value },
];

/// Run last: it leaves a CPU in a mode from which not every machine finds back.
pub(crate) const LAST_CASES: &[Case] =
    &[Case { name: "machine-x2apic", run: x2apic_on_another_cpu }];

const IPI_VECTOR: u8 = 0x41;
const TIMER_VECTOR: u8 = 0x42;
const PENDING_VECTOR: u8 = 0x43;

/// Polls for up to a second of machine time.
fn within_a_second(condition: impl Fn() -> bool) -> bool {
    (0..1000).any(|_| {
        if condition() {
            return true;
        }
        pit::delay(1_000);
        condition()
    })
}

fn all_cpus_up(line: &CommandLine) -> Outcome {
    // A real machine has the CPUs it has, whatever the image was told when it was written.
    let announced = line.number("cpus").filter(|_| identity::machine() != Machine::Metal);
    if announced.is_some_and(|count| count != smp::cpu_count() as u64) {
        return Outcome::Fail("not as many CPUs as announced");
    }
    if smp::listed().is_some_and(|count| count != smp::cpu_count()) {
        return Outcome::Fail("not as many CPUs as the firmware lists");
    }
    let same = |a: usize, b: usize| smp::apic_id(a) == smp::apic_id(b);
    if (0..smp::cpu_count()).any(|a| (0..a).any(|b| same(a, b))) {
        return Outcome::Fail("two CPUs with one APIC ID");
    }
    Outcome::Pass
}

fn work_runs_on_its_cpu(_: &CommandLine) -> Outcome {
    static SUM: AtomicU32 = AtomicU32::new(0);
    if smp::cpu_count() == 1 {
        return Outcome::Skip("one CPU");
    }
    let mut expected = 0;
    for cpu in 1..smp::cpu_count() {
        expected += smp::apic_id(cpu) + 1;
        smp::run_on(cpu, |cpu| {
            if smp::this_cpu() == cpu {
                SUM.fetch_add(apic::id() + 1, Ordering::Relaxed);
            }
        });
    }
    (1..smp::cpu_count()).for_each(smp::wait_idle);
    match SUM.load(Ordering::Relaxed) == expected {
        true => Outcome::Pass,
        false => Outcome::Fail("work ran on another CPU, or not"),
    }
}

fn ipi_received_once(_: &CommandLine) -> Outcome {
    const ROUNDS: u64 = 100;
    if smp::cpu_count() == 1 {
        return Outcome::Skip("one CPU");
    }
    for cpu in 1..smp::cpu_count() {
        for round in 1..=ROUNDS {
            apic::send(smp::apic_id(cpu), IPI_VECTOR);
            if !within_a_second(|| interrupts::count_on(cpu, IPI_VECTOR) >= round) {
                return Outcome::Fail("an IPI was lost");
            }
        }
    }
    pit::delay(1_000);
    match (1..smp::cpu_count()).all(|cpu| interrupts::count_on(cpu, IPI_VECTOR) == ROUNDS)
        && interrupts::count_on(0, IPI_VECTOR) == 0
    {
        true => Outcome::Pass,
        false => Outcome::Fail("an IPI arrived twice or elsewhere"),
    }
}

fn pending_then_in_service(_: &CommandLine) -> Outcome {
    static IN_SERVICE: AtomicU32 = AtomicU32::new(0);
    interrupts::set_handler(PENDING_VECTOR, |_| {
        let once = apic::in_service(PENDING_VECTOR) && !apic::requested(PENDING_VECTOR);
        IN_SERVICE.store(u32::from(once), Ordering::Relaxed);
    });
    let waited = interrupts::without(|| {
        apic::send(apic::id(), PENDING_VECTOR);
        within_a_second(|| apic::requested(PENDING_VECTOR))
    });
    let taken = within_a_second(|| interrupts::count_on(0, PENDING_VECTOR) == 1);
    interrupts::clear_handler(PENDING_VECTOR);
    if !waited || !taken {
        return Outcome::Fail("not requested while interrupts were off, or not taken after");
    }
    match (IN_SERVICE.load(Ordering::Relaxed), apic::in_service(PENDING_VECTOR)) {
        (1, false) => Outcome::Pass,
        (1, true) => Outcome::Fail("still in service after its EOI"),
        _ => Outcome::Fail("not in service in its handler"),
    }
}

fn nmi_received_once(_: &CommandLine) -> Outcome {
    const NMI: u8 = x86::irq::NONMASKABLE_INTERRUPT_VECTOR;
    let Some(cpu) = smp::cpu_count().checked_sub(1).filter(|&cpu| cpu > 0) else {
        return Outcome::Skip("one CPU");
    };
    interrupts::set_handler(NMI, |_| {});
    apic::send_nmi(smp::apic_id(cpu));
    let received = within_a_second(|| interrupts::count_on(cpu, NMI) > 0);
    pit::delay(1_000);
    interrupts::clear_handler(NMI);
    match (received, interrupts::count(NMI)) {
        (true, 1) => Outcome::Pass,
        (true, _) => Outcome::Fail("one NMI was taken more than once"),
        (false, _) => Outcome::Fail("an NMI was lost"),
    }
}

fn timer_interrupts(_: &CommandLine) -> Outcome {
    apic::start_timer(TIMER_VECTOR, 1_000);
    let fired = within_a_second(|| interrupts::count_on(0, TIMER_VECTOR) > 0);
    pit::delay(20_000);
    apic::stop_timer();
    match (fired, interrupts::count(TIMER_VECTOR)) {
        (true, 1) => Outcome::Pass,
        (true, _) => Outcome::Fail("one shot gave more than one interrupt"),
        (false, _) => Outcome::Fail("no timer interrupt"),
    }
}

/// Uses MSRs that must fault: the x2APIC ones in xAPIC mode (SDM Vol. 3A 10.12.2).
fn msr_fault_is_a_value(_: &CommandLine) -> Outcome {
    const X2APIC_ID: u32 = 0x802;
    const X2APIC_SELF_IPI: u32 = 0x83f;
    if !has_x2apic() || apic::mode() != Mode::XApic {
        return Outcome::Skip("no x2APIC, or in it already");
    }
    let read = msr::try_read(X2APIC_ID);
    // SAFETY: at worst this CPU sends itself an interrupt whose vector nobody handles, which is counted.
    let written = unsafe { msr::try_write(X2APIC_SELF_IPI, u64::from(IPI_VECTOR)) };
    let base = msr::try_read(x86::msr::IA32_APIC_BASE);
    match (read, written) {
        (None, false) if base == Some(msr::read(x86::msr::IA32_APIC_BASE)) => Outcome::Pass,
        (None, false) => Outcome::Fail("an MSR read without a fault gave a wrong value"),
        _ => Outcome::Fail("an x2APIC MSR did not fault in xAPIC mode"),
    }
}

fn has_x2apic() -> bool {
    identity::cpuid().get_feature_info().is_some_and(|features| features.has_x2apic())
}

fn x2apic_on_another_cpu(_: &CommandLine) -> Outcome {
    match (has_x2apic(), smp::cpu_count().checked_sub(1)) {
        (false, _) => Outcome::Skip("no x2APIC"),
        (_, Some(0) | None) => Outcome::Skip("one CPU"),
        (true, Some(cpu)) => {
            static WRONG: AtomicU32 = AtomicU32::new(0);
            smp::run_on(cpu, |cpu| {
                apic::enter_x2apic();
                let right = apic::mode() == Mode::X2Apic && apic::id() == smp::apic_id(cpu);
                WRONG.store(u32::from(!right), Ordering::Relaxed);
            });
            smp::wait_idle(cpu);
            let before = interrupts::count_on(cpu, IPI_VECTOR);
            apic::send(smp::apic_id(cpu), IPI_VECTOR);
            let received = within_a_second(|| interrupts::count_on(cpu, IPI_VECTOR) == before + 1);
            match (WRONG.load(Ordering::Relaxed), received) {
                (0, true) => Outcome::Pass,
                (0, false) => Outcome::Fail("no IPI in x2APIC mode"),
                _ => Outcome::Fail("mode or ID wrong after the switch"),
            }
        }
    }
}
