//! Entry and exit, faults, and what cannot be entered.

use super::{Failure, check, until, until_call, until_finish, with_guest};
use crate::guest::hypercall::{self, Hypercall};
use crate::guest::{Start, programs};
use crate::machine::identity::{self, Machine};
use crate::svm::interrupt::Event;
use crate::svm::state::Options;
use crate::svm::{Reason, SvmError};
use crate::{log, println};

const ROUNDS: u64 = 1000;

pub(super) fn vmmcall() -> Result<(), Failure> {
    with_guest(Options::default(), programs::count_rounds, ROUNDS, |current, _, _| {
        let mut expected = 0.0;
        for round in 0..ROUNDS {
            let call = until_call(current)?;
            let operation = hypercall::FIRST_FREE;
            let right = Hypercall::Other { operation, first: round, second: !round };
            check(call == right, "the arguments did not arrive")?;
            current.general()[0] = 3 * round;
            expected += (3 * round) as f64 + 0.5;
        }
        until_finish(current, expected as u64)?;
        check(current.exits().of(Reason::Vmmcall) == ROUNDS + 1, "VMMCALL exits were miscounted")?;
        let interrupts = current.exits().of(Reason::Interrupt);
        check(current.exits().total() == ROUNDS + 1 + interrupts, "there were other exits")
    })
}

pub(super) fn fault() -> Result<(), Failure> {
    let options = Options { cr8_exiting: false, ..Options::default() };
    with_guest(options, programs::make_faults, 0, |current, _, _| {
        let exit = until(current, Reason::Msr)?;
        check(exit.is_write(), "a WRMSR is told as a RDMSR")?;
        let [rax, rcx, rdx, ..] = *current.general();
        check(rcx as u32 == programs::NO_SUCH_MSR, "RCX is not the register number")?;
        check((rax, rdx) == (2, 1), "EDX:EAX is not the value")?;
        current.inject(Event::GeneralProtection);
        // The MOV to CR8 faults without help.
        let exit = until(current, Reason::Msr)?;
        check(!exit.is_write(), "a RDMSR is told as a WRMSR")?;
        current.inject(Event::GeneralProtection);
        let exit = until(current, Reason::Msr)?;
        current.general()[0] = 0x7777_8888;
        current.general()[2] = 0x5555_6666;
        current.skip_instruction(&exit)?;
        let call = until_call(current)?;
        if call == Hypercall::Finish(2) && identity::machine() == Machine::Qemu {
            println!("HIL-BUG name=Q1 note=MOV to CR8 of a value above 15 does not fault");
            return Ok(());
        }
        check(call == Hypercall::Finish(3), "there were other faults, or fewer")
    })
}

/// What cannot be entered is an error, and the next entry works again.
pub(super) fn entry_failure() -> Result<(), Failure> {
    with_guest(Options::default(), programs::nothing, 5, |current, _, context| {
        let start = Start::new(context, programs::nothing, 5);
        // The guest's EFER.SVME must be set, and the host's address space is not for guests (APM Vol. 2 15.5.1).
        current.vmcb().save.efer &= !(1 << 12);
        refused(until(current, Reason::Vmmcall), "EFER.SVME = 0 was not refused")?;
        current.start(&start);

        let asid = core::mem::take(&mut current.vmcb().control.asid);
        refused(until(current, Reason::Vmmcall), "address space 0 was not refused")?;
        current.vmcb().control.asid = asid;
        current.start(&start);
        until_finish(current, 5)
    })
}

fn refused<T: core::fmt::Debug>(
    result: Result<T, Failure>,
    what: &'static str,
) -> Result<(), Failure> {
    match result {
        Err(Failure::Svm(SvmError::EntryRefused)) => Ok(()),
        other => {
            log!("{other:?}");
            Err(Failure::Wrong(what))
        }
    }
}

/// A fault with no usable table to find its handler in becomes a shutdown, which ends the guest and not the machine.
pub(super) fn shutdown() -> Result<(), Failure> {
    let options = Options { cr8_exiting: false, ..Options::default() };
    with_guest(options, programs::make_faults, 0, |current, _, _| {
        until(current, Reason::Msr)?;
        current.vmcb().save.idtr.limit = 0;
        current.inject(Event::GeneralProtection);
        until(current, Reason::Shutdown).map(drop)
    })
}
