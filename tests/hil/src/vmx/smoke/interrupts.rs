//! Interrupts for the host, interrupts for the guest, and the timer that needs neither.

use core::sync::atomic::Ordering;

use super::{Failure, check, turn, until, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::programs;
use crate::machine::identity::{self, Machine};
use crate::machine::{apic, interrupts as host, smp};
use crate::vmx::Reason;
use crate::vmx::ept::{MemoryType, Permissions};
use crate::vmx::interrupt::{Activity, Event};
use crate::vmx::state::Options;
use crate::{log, println};

/// For the host.
const HOST_VECTOR: u8 = 0x47;
const TICKS: u32 = 100_000;

pub(super) fn external_interrupt() -> Result<(), Failure> {
    for guest_interrupts in [true, false] {
        external_interrupt_with(guest_interrupts)?;
    }
    Ok(())
}

/// An interrupt for the host ends the guest's turn, whatever the guest's IF is, and is the host's alone.
fn external_interrupt_with(guest_interrupts: bool) -> Result<(), Failure> {
    let argument = u64::from(guest_interrupts);
    with_guest(Options::default(), programs::wait_for_host, argument, |current, _, context| {
        until_phase(current, 1)?;
        let cpu = smp::this_cpu();
        let before = host::count_on(cpu, HOST_VECTOR);
        current.set_preemption_timer(Some(TICKS))?;
        let exit = host::without(|| {
            apic::send(smp::apic_id(cpu), HOST_VECTOR);
            current.run()
        })?;
        let known = !guest_interrupts && identity::machine() == Machine::Bochs;
        if exit.reason == Reason::PreemptionTimer && known {
            println!("HIL-BUG name=D2 note=no external-interrupt exit while the guest has IF=0");
        } else {
            check(exit.acknowledged_vector() == Some(HOST_VECTOR), "no exit for the interrupt")?;
            check(host::count_on(cpu, HOST_VECTOR) == before, "it was delivered by the exit")?;
            check(current.dispatch_interrupt(&exit), "it was not dispatched")?;
        }
        check(host::count_on(cpu, HOST_VECTOR) == before + 1, "the host did not get it once")?;
        current.set_preemption_timer(None)?;
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1)?;
        check(context.total() == 0, "the guest got it")
    })
}

pub(super) fn preemption_timer() -> Result<(), Failure> {
    with_guest(Options::default(), programs::wait_for_host, 0, |current, _, context| {
        if !current.capability().preemption_timer() {
            return Err(Failure::Skip("no VMX preemption timer"));
        }
        until_phase(current, 1)?;
        for _ in 0..3 {
            current.set_preemption_timer(Some(TICKS))?;
            let clock = vlapic_hal::x86::TscClock;
            let start = vlapic_hal::Clock::now(&clock);
            until(current, Reason::PreemptionTimer)?;
            let ticks = vlapic_hal::Clock::now(&clock) - start;
            let shift = current.capability().preemption_timer_shift();
            // The timer starts at the next change of its TSC bit.
            let least = u64::from(TICKS - 1) << shift;
            log!("timer {TICKS} << {shift}: {ticks} ticks");
            check(ticks >= least, "the timer ran out early")?;
        }
        current.set_preemption_timer(None)?;
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1)?;
        check(current.exits().of(Reason::PreemptionTimer) == 3, "it was not switched off")
    })
}

pub(super) fn hlt() -> Result<(), Failure> {
    with_guest(Options::default(), programs::halt_twice, 0, |current, _, _| {
        let exit = until(current, Reason::Hlt)?;
        check(exit.instruction_length == 1, "HLT is one byte")?;
        current.skip_instruction(&exit)?;
        check(!current.can_take_interrupt()?, "IF is 0, yet an interrupt could be taken")?;

        let exit = until(current, Reason::Hlt)?;
        check(!current.can_take_interrupt()?, "STI does not hold off interrupts")?;
        current.skip_instruction(&exit)?;
        check(current.can_take_interrupt()?, "IF is 1, yet no interrupt could be taken")?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR))?;
        check(!current.can_take_interrupt()?, "two events could be injected at once")?;
        until_finish(current, 1)
    })
}

/// Without HLT exiting the guest halts in the processor, and an event ends that.
pub(super) fn halted() -> Result<(), Failure> {
    with_guest(Options::default(), programs::halt_once, 0, |current, _, context| {
        if !current.capability().preemption_timer() {
            return Err(Failure::Skip("no VMX preemption timer"));
        }
        current.set_hlt_exiting(false)?;
        check(current.activity()? == Activity::Active, "it halts before it starts")?;
        current.set_preemption_timer(Some(TICKS))?;
        until(current, Reason::PreemptionTimer)?;
        current.set_preemption_timer(None)?;
        check(current.activity()? == Activity::Halted, "the guest does not halt")?;
        check(current.can_take_interrupt()?, "the interrupt that it waits for cannot be taken")?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR))?;
        until_finish(current, 1)?;
        check(context.traced(0) == Some(programs::VECTOR), "another vector was taken first")
    })
}

/// An NMI that is injected is the guest's; one that another CPU sends is the host's.
pub(super) fn nmi() -> Result<(), Failure> {
    const NMI: u8 = 2;
    with_guest(Options::default(), programs::count_nmis, 0, |current, _, context| {
        until_phase(current, 1)?;
        current.inject(Event::Nmi)?;
        until_phase(current, 2)?;
        if smp::cpu_count() > 1 {
            let cpu = smp::this_cpu();
            let before = host::count_on(cpu, NMI);
            host::set_handler(NMI, |_| {});
            smp::run_on(1, programs::send_nmi_to_first);
            let exit = turn(current)?;
            let dispatched = current.dispatch_interrupt(&exit);
            smp::wait_idle(1);
            host::clear_handler(NMI);
            check(exit.reason == Reason::ExceptionOrNmi, "no exit for the NMI")?;
            check(dispatched, "it was not dispatched")?;
            check(host::count_on(cpu, NMI) == before + 1, "the host did not get it once")?;
        }
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1 << 8 | 1)
    })
}

pub(super) fn interrupt_window() -> Result<(), Failure> {
    with_guest(Options::default(), programs::open_a_window, 0, |current, _, context| {
        until_phase(current, 1)?;
        check(!current.can_take_interrupt()?, "IF is 0, yet an interrupt could be taken")?;
        current.set_interrupt_window(true)?;
        until(current, Reason::InterruptWindow)?;
        current.set_interrupt_window(false)?;
        check(current.can_take_interrupt()?, "the window is not one")?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR))?;
        until_finish(current, 1)?;
        check(context.total() == 1, "another vector was taken as well")
    })
}

/// The guest's IDT is out of memory when an interrupt is injected: the event comes back in the IDT-vectoring information
/// and is delivered once, on the second try.
pub(super) fn reinject() -> Result<(), Failure> {
    with_guest(Options::default(), programs::open_a_window, 0, |current, ept, context| {
        until_phase(current, 1)?;
        current.set_interrupt_window(true)?;
        until(current, Reason::InterruptWindow)?;
        current.set_interrupt_window(false)?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR))?;
        let gate = context.gate_address(programs::VECTOR) & !0xfff;
        ept.unmap_4k(gate)?;
        ept.invalidate();
        let exit = turn(current)?;
        check(exit.reason == Reason::EptViolation, "the IDT is still there")?;
        check(exit.guest_physical & !0xfff == gate, "another page was missing")?;
        check(exit.idt_vectoring.vector() == programs::VECTOR, "the event is not told")?;
        ept.map_4k(gate, gate, Permissions::ALL, MemoryType::WriteBack)?;
        ept.invalidate();
        check(current.reinject(&exit)?, "there is nothing to inject again")?;
        match until_call(current)? {
            Hypercall::Finish(1) => Ok(()),
            _ => Err(Failure::Wrong("it was not delivered once")),
        }
    })
}
