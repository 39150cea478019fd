//! Interrupts for the host, interrupts for the guest, and the timer that bounds a turn.

use core::sync::atomic::Ordering;

use super::{Failure, check, turn, until, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::programs;
use crate::machine::identity::{self, Machine};
use crate::machine::{apic, interrupts as host, smp};
use crate::println;
use crate::svm::interrupt::Event;
use crate::svm::npt::{MemoryType, Permissions};
use crate::svm::state::Options;
use crate::svm::turn::VECTOR as TURN_VECTOR;
use crate::svm::{Exit, Reason};

/// For the host.
const HOST_VECTOR: u8 = 0x47;
/// TSC ticks of a turn.
const TICKS: u64 = 2_000_000;

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
        let exit = host::without(|| {
            apic::send(smp::apic_id(cpu), HOST_VECTOR);
            let exit = current.run()?;
            let early = host::count_on(cpu, HOST_VECTOR) != before;
            check(!early, "it was delivered by the exit")?;
            current.dispatch_interrupt(&exit);
            Ok::<_, Failure>(exit)
        })?;
        check(host::count_on(cpu, HOST_VECTOR) == before + 1, "the host did not get it once")?;
        if if_masks_host(&exit, guest_interrupts) {
            return Ok(());
        }
        check(exit.reason == Reason::Interrupt, "no exit for the interrupt")?;
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1)?;
        check(context.total() == 0, "the guest got it")
    })
}

/// Names the emulator's defect if the guest, which waited with IF as given, was not interrupted.
fn if_masks_host(exit: &Exit, guest_interrupts: bool) -> bool {
    let known = !guest_interrupts && identity::machine() == Machine::Bochs;
    let seen = known && exit.reason == Reason::Vmmcall;
    if seen {
        println!("HIL-BUG name=S2 note=no exit for a physical interrupt while the guest has IF=0");
    }
    seen
}

/// The host's timer ends a turn, again and again, and leaves the host alone afterwards.
pub(super) fn turn_ends() -> Result<(), Failure> {
    with_guest(Options::default(), programs::wait_for_host, 1, |current, _, context| {
        until_phase(current, 1)?;
        let cpu = smp::this_cpu();
        current.set_turn(Some(TICKS));
        for _ in 0..3 {
            let before = host::count_on(cpu, TURN_VECTOR);
            let clock = vlapic_hal::x86::TscClock;
            let start = vlapic_hal::Clock::now(&clock);
            until(current, Reason::Interrupt)?;
            let ticks = vlapic_hal::Clock::now(&clock) - start;
            crate::log!("a turn of {TICKS}: {ticks} ticks");
            check(ticks >= TICKS / 2, "the turn ended early")?;
            check(host::count_on(cpu, TURN_VECTOR) == before + 1, "it was not the timer")?;
        }
        current.set_turn(None);
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1)?;
        check(context.total() == 0, "the guest got it")
    })
}

pub(super) fn hlt() -> Result<(), Failure> {
    with_guest(Options::default(), programs::halt_twice, 0, |current, _, _| {
        let exit = until(current, Reason::Hlt)?;
        current.skip_instruction(&exit)?;
        check(!current.can_take_interrupt(), "IF is 0, yet an interrupt could be taken")?;

        let exit = until(current, Reason::Hlt)?;
        check(!current.can_take_interrupt(), "STI does not hold off interrupts")?;
        current.skip_instruction(&exit)?;
        check(current.can_take_interrupt(), "IF is 1, yet no interrupt could be taken")?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR));
        check(!current.can_take_interrupt(), "two events could be injected at once")?;
        until_finish(current, 1)
    })
}

/// Without HLT exits the guest halts in the processor, and a virtual interrupt that waits ends that.
pub(super) fn halted() -> Result<(), Failure> {
    with_guest(Options::default(), programs::halt_once, 0, |current, _, context| {
        current.set_hlt_exiting(false);
        current.set_turn(Some(20 * TICKS));
        current.request(Some(programs::VECTOR));
        let exit = turn(current)?;
        if exit.reason == Reason::Interrupt && identity::machine() == Machine::Bochs {
            println!("HIL-BUG name=S3 note=V_IRQ does not wake a guest from HLT");
            return Ok(());
        }
        check(exit.reason == Reason::Vmmcall, "it did not wake")?;
        let right = Hypercall::decode(current.general()) == Hypercall::Finish(1);
        check(right, "it was not taken once")?;
        check(context.traced(0) == Some(programs::VECTOR), "another vector was taken first")
    })
}

/// An NMI that is injected is the guest's; one that another CPU sends is the host's.
pub(super) fn nmi() -> Result<(), Failure> {
    const NMI: u8 = 2;
    with_guest(Options::default(), programs::count_nmis, 0, |current, _, context| {
        until_phase(current, 1)?;
        current.inject(Event::Nmi);
        until_phase(current, 2)?;
        if smp::cpu_count() > 1 {
            let cpu = smp::this_cpu();
            let before = host::count_on(cpu, NMI);
            host::set_handler(NMI, |_| {});
            smp::run_on(1, programs::send_nmi_to_first);
            let exit = turn(current)?;
            smp::wait_idle(1);
            host::clear_handler(NMI);
            let taken = host::count_on(cpu, NMI) - before;
            check(exit.reason == Reason::Nmi, "no exit for the NMI")?;
            check(current.dispatch_interrupt(&exit), "it is not the host's")?;
            check(taken == 1, "the host did not get it once")?;
        }
        context.word(0).store(1, Ordering::Release);
        until_finish(current, 1 << 8 | 1)
    })
}

pub(super) fn interrupt_window() -> Result<(), Failure> {
    with_guest(Options::default(), programs::open_a_window, 0, |current, _, context| {
        until_phase(current, 1)?;
        check(!current.can_take_interrupt(), "IF is 0, yet an interrupt could be taken")?;
        current.set_interrupt_window(true);
        until(current, Reason::VirtualInterrupt)?;
        current.set_interrupt_window(false);
        check(current.can_take_interrupt(), "the window is not one")?;
        current.inject(Event::ExternalInterrupt(programs::VECTOR));
        until_finish(current, 1)?;
        check(context.total() == 1, "another vector was taken as well")
    })
}

/// The guest's IDT is out of memory when an interrupt is injected: the event comes back in EXITINTINFO and is delivered
/// once, on the second try.
pub(super) fn reinject() -> Result<(), Failure> {
    with_guest(Options::default(), programs::open_a_window, 0, |current, npt, context| {
        until_phase(current, 1)?;
        current.set_interrupt_window(true);
        until(current, Reason::VirtualInterrupt)?;
        current.set_interrupt_window(false);
        current.inject(Event::ExternalInterrupt(programs::VECTOR));
        let gate = context.gate_address(programs::VECTOR) & !0xfff;
        npt.unmap_4k(gate)?;
        current.flush_translations();
        let exit = turn(current)?;
        check(exit.reason == Reason::NestedPageFault, "the IDT is still there")?;
        check(exit.guest_physical() & !0xfff == gate, "another page was missing")?;
        npt.map_4k(gate, gate, Permissions::ALL, MemoryType::WriteBack)?;
        current.flush_translations();
        check(exit.interrupted.vector() == programs::VECTOR, "the event is not told")?;
        check(exit.interrupted.kind() == 0, "it is told as another kind of event")?;
        check(current.reinject(&exit), "there is nothing to inject again")?;
        match until_call(current)? {
            Hypercall::Finish(1) => Ok(()),
            _ => Err(Failure::Wrong("it was not delivered once")),
        }
    })
}
