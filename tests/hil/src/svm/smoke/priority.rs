//! CR8, V_TPR, and virtual interrupts that they hold off.

use core::sync::atomic::Ordering;

use super::{Failure, check, until, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::{Context, Eoi, cpu, hypercall, programs};
use crate::machine::apic as physical;
use crate::machine::identity::{self, Machine};
use crate::svm::Reason;
use crate::svm::interrupt::Event;
use crate::svm::state::Options;
use crate::{log, println};

extern "C" fn use_cr8(_: &'static Context, _: u64) -> u64 {
    let before = cpu::read_cr8();
    let refused = cpu::write_cr8(16).is_err();
    let written = cpu::write_cr8(before + 2);
    hypercall::phase(1);
    u64::from(refused) << 17 | u64::from(written.is_ok()) << 16 | cpu::read_cr8() << 8 | before
}

/// CR8 accesses that exit: which register they move, and how long they are.
pub(super) fn cr8() -> Result<(), Failure> {
    with_guest(Options::default(), use_cr8, 0, |current, _, _| {
        let exit = until(current, Reason::ReadCr8)?;
        let operand = current.cr8_operand()?;
        current.general()[operand] = 5;
        current.skip_instruction(&exit)?;

        let mut exit = until(current, Reason::WriteCr8)?;
        let mut operand = current.cr8_operand()?;
        // Whether a value above 15 faults before it exits is the processor's choice.
        if current.general()[operand] == 16 {
            current.inject(Event::GeneralProtection);
            exit = until(current, Reason::WriteCr8)?;
            operand = current.cr8_operand()?;
        }
        check(current.general()[operand] == 7, "another value was written")?;
        current.skip_instruction(&exit)?;
        until_phase(current, 1)?;

        let exit = until(current, Reason::ReadCr8)?;
        let operand = current.cr8_operand()?;
        current.general()[operand] = 7;
        current.skip_instruction(&exit)?;
        until_finish(current, 3 << 16 | 7 << 8 | 5)
    })
}

/// CR8 accesses that do not exit are V_TPR's, and the host's own task priority stays.
pub(super) fn task_priority() -> Result<(), Failure> {
    let options = Options { cr8_exiting: false, ..Options::default() };
    with_guest(options, use_cr8, 0, |current, _, _| {
        let host = physical::read(physical::Register::Tpr);
        current.set_task_priority(5);
        until_phase(current, 1)?;
        check(current.task_priority() == 7, "V_TPR did not follow CR8")?;
        // QEMU's defect Q1: the value above 15 does not fault.
        let refused = if identity::machine() == Machine::Qemu { 0 } else { 2 };
        until_finish(current, (refused | 1) << 16 | 7 << 8 | 5)?;
        check(physical::read(physical::Register::Tpr) == host, "the host's TPR moved")
    })
}

/// Takes the interrupt that its host requests: first with IF = 1 already, then when it sets IF.
extern "C" fn take_requests(context: &'static Context, _: u64) -> u64 {
    context.set_handling(programs::VECTOR, Eoi::Never, None);
    let taken = || u64::from(context.count(programs::VECTOR));
    hypercall::phase(1);
    cpu::interrupts_on();
    let at_sti = taken();
    hypercall::phase(2);
    cpu::wait(1000, || taken() == 2);
    let at_entry = taken();
    // Where an entry with IF = 1 left it waiting, it is taken here.
    cpu::interrupts_off();
    cpu::interrupts_on();
    context.word(0).store(taken(), Ordering::Relaxed);
    hypercall::phase(3);
    cpu::wait(1000, || false);
    let blocked = taken();
    hypercall::phase(4);
    cpu::interrupts_off();
    cpu::interrupts_on();
    at_sti << 24 | at_entry << 16 | blocked << 8 | taken()
}

/// V_IRQ is taken through the guest's own table with no exit, once, and not while V_TPR is as high or higher.
pub(super) fn virtual_interrupt() -> Result<(), Failure> {
    let class = programs::VECTOR >> 4;
    [class, class + 1].into_iter().try_for_each(held_off_by)
}

fn held_off_by(priority: u8) -> Result<(), Failure> {
    with_guest(Options::default(), take_requests, 0, |current, _, context| {
        until_phase(current, 1)?;
        current.request(Some(programs::VECTOR));
        until_phase(current, 2)?;
        check(!current.is_requested(), "what was taken still waits")?;
        current.request(Some(programs::VECTOR));
        until_phase(current, 3)?;
        check(context.word(0).load(Ordering::Relaxed) == 2, "the second was not taken")?;
        current.set_task_priority(priority);
        current.request(Some(programs::VECTOR));
        until_phase(current, 4)?;
        let held_off = current.is_requested();
        current.set_task_priority(0);
        let call = until_call(current)?;
        check(current.exits().of(Reason::VirtualInterrupt) == 0, "it exited")?;
        let equal = priority == programs::VECTOR >> 4;
        match (identity::machine(), call) {
            (_, Hypercall::Finish(0x01_02_02_03)) if held_off => {}
            (Machine::Bochs, Hypercall::Finish(0x01_01_02_03)) if held_off => {
                println!("HIL-BUG name=S1 note=V_IRQ waits at an entry with IF=1 until IF changes");
            }
            (Machine::Qemu, Hypercall::Finish(0x01_02_03_03)) if equal => {
                println!("HIL-BUG name=Q3 note=V_TPR does not hold off V_IRQ of the same priority");
            }
            _ => {
                log!("priority {priority}: {call:x?}, held off: {held_off}");
                return Err(Failure::Wrong("taken at other times"));
            }
        }
        Ok(())
    })
}
