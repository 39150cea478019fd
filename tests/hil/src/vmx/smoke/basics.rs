//! Entry and exit, registers, faults.

use x86::vmx::vmcs::guest as field;

use super::{Failure, check, until, until_call, until_finish, with_guest};
use crate::guest::hypercall::{self, Hypercall};
use crate::guest::programs;
use crate::log;
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;
use crate::vmx::{Reason, VmxError};

const ROUNDS: u64 = 1000;

pub(super) fn vmcall() -> Result<(), Failure> {
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
        check(current.exits().of(Reason::Vmcall) == ROUNDS + 1, "VMCALL exits were miscounted")?;
        check(current.exits().total() == ROUNDS + 1, "there were other exits")
    })
}

pub(super) fn fault() -> Result<(), Failure> {
    let options = Options { cr8_exiting: false, ..Options::default() };
    with_guest(options, programs::make_faults, 0, |current, _, _| {
        until(current, Reason::Wrmsr)?;
        let [rax, rcx, rdx, ..] = *current.general();
        check(rcx as u32 == programs::NO_SUCH_MSR, "RCX is not the register number")?;
        check((rax, rdx) == (2, 1), "EDX:EAX is not the value")?;
        current.inject(Event::GeneralProtection)?;
        // The MOV to CR8 faults without help.
        until(current, Reason::Rdmsr)?;
        current.inject(Event::GeneralProtection)?;
        let exit = until(current, Reason::Rdmsr)?;
        current.general()[0] = 0x7777_8888;
        current.general()[2] = 0x5555_6666;
        current.skip_instruction(&exit)?;
        until_finish(current, 3)
    })
}

/// What cannot be entered is an error with its reason, and the next entry works again.
pub(super) fn entry_failure() -> Result<(), Failure> {
    const GUEST_STATE: u16 = 33;
    const CONTROLS: u32 = 7;
    with_guest(Options::default(), programs::nothing, 5, |current, _, _| {
        let rflags = current.vmcs.get(field::RFLAGS)?;
        // Bit 1 of RFLAGS is always 1.
        current.vmcs.set(field::RFLAGS, 0)?;
        match until(current, Reason::Vmcall) {
            Err(Failure::Vmx(VmxError::EntryFailed { reason: GUEST_STATE, .. })) => {}
            other => {
                log!("{other:?}");
                return Err(Failure::Wrong("bad guest state was not refused"));
            }
        }
        current.vmcs.set(field::RFLAGS, rflags)?;

        const PIN: u32 = x86::vmx::vmcs::control::PINBASED_EXEC_CONTROLS;
        const VIRTUAL_NMIS: u32 = 1 << 5;
        const NMI_EXITING: u32 = 1 << 3;
        let pin = current.vmcs.get(PIN)?;
        current.vmcs.assign(PIN, VIRTUAL_NMIS, true)?;
        current.vmcs.assign(PIN, NMI_EXITING, false)?;
        match until(current, Reason::Vmcall) {
            Err(Failure::Vmx(VmxError::EntryRefused(Some(CONTROLS)))) => {}
            other => {
                log!("{other:?}");
                return Err(Failure::Wrong("bad controls were not refused"));
            }
        }
        current.vmcs.set(PIN, pin)?;
        until_finish(current, 5)
    })
}
