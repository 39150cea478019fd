//! General registers, and MSRs as the guest reaches them.

use x86::msr;

use super::{Failure, check, until, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::programs;
use crate::machine::identity::{self, Machine};
use crate::svm::Reason;
use crate::svm::interrupt::Event;
use crate::svm::state::Options;
use crate::{log, println};

const RSP: usize = 4;

/// Every register arrives at the host, and what the host puts there arrives at the guest.
pub(super) fn all_registers() -> Result<(), Failure> {
    with_guest(Options::default(), programs::exchange_registers, 0, |current, _, _| {
        let exit = until(current, Reason::Vmmcall)?;
        for (number, register) in (0..).zip(current.general()) {
            if number != RSP as u64 {
                check(*register == programs::pattern(number), "a register did not arrive")?;
                *register = !*register;
            }
        }
        // The host uses XMM registers in between, as compiled code does.
        log!("{:.3}", current.exits().total() as f64 * 1.25);
        current.skip_instruction(&exit)?;
        until_finish(current, 15 << 8 | 16)
    })
}

/// A register exits until the map says otherwise.
pub(super) fn msr_permissions() -> Result<(), Failure> {
    with_guest(Options::default(), programs::read_tsc, 0, |current, _, _| {
        let exit = until(current, Reason::Msr)?;
        check(!exit.is_write(), "a read is told as a write")?;
        check(current.general()[1] as u32 == msr::TSC, "another register was read")?;
        current.general()[0] = 7;
        current.general()[2] = 1;
        current.skip_instruction(&exit)?;
        until_phase(current, 1)?;
        current.msr_permissions().set_exits(msr::TSC, false, true);
        // The host's own time stamp is far beyond 2^32 only on a machine that has been up a while.
        current.vmcb().control.tsc_offset = 1 << 40;
        let call = until_call(current)?;
        check(current.exits().of(Reason::Msr) == 1, "it exited again")?;
        if call == Hypercall::Finish(0) && identity::machine() == Machine::Qemu {
            println!("HIL-BUG name=Q2 note=RDMSR does not read the time-stamp counter");
            return Ok(());
        }
        check(call == Hypercall::Finish(1), "the offset was not added")
    })
}

/// In x2APIC mode the guest's accesses are MSR exits with the right number and value.
pub(super) fn x2apic_msrs() -> Result<(), Failure> {
    with_guest(Options::default(), programs::use_x2apic, 0, |current, _, _| {
        for (register, value, answer) in programs::X2APIC_USES {
            let exit = until(current, Reason::Msr)?;
            let [rax, rcx, rdx, ..] = *current.general();
            check(rcx == u64::from(register), "another register was accessed")?;
            check(exit.is_write() == value.is_some(), "a read is a write, or the reverse")?;
            check(value.is_none_or(|value| (rdx, rax) == (0, value)), "another value was written")?;
            let Some(answer) = answer else {
                current.inject(Event::GeneralProtection);
                continue;
            };
            if value.is_none() {
                current.general()[0] = answer;
                current.general()[2] = 0;
            }
            current.skip_instruction(&exit)?;
        }
        until_finish(current, 1)
    })
}
