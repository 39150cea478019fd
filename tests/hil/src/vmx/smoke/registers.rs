//! VMCS fields as the driver reaches them, and MSRs as the guest does.

use vlapic_hal::{Vmcs, VmcsError, VmcsField};
use x86::msr;
use x86::vmx::vmcs::control::{self, PrimaryControls};

use super::{Failure, check, until, until_finish, until_phase, with_guest};
use crate::guest::programs;
use crate::log;
use crate::vmx::Reason;
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;

/// What the APIC driver is lent works, and tells apart what can go wrong.
pub(super) fn fields() -> Result<(), Failure> {
    const EOI_EXIT_0: VmcsField = VmcsField::new(0x201c);
    const EOI_EXIT_0_HIGH: VmcsField = VmcsField::new(0x201d);
    /// Width 16 bits, guest state, index 511.
    const NO_SUCH_FIELD: VmcsField = VmcsField::new(0x0bfe);
    with_guest(Options::default(), programs::nothing, 0, |current, _, _| {
        let vmcs = current.vmcs.hal();
        match vmcs.write(EOI_EXIT_0, 0x0123_4567_89ab_cdef) {
            Ok(()) => {
                let read = [vmcs.read(EOI_EXIT_0), vmcs.read(EOI_EXIT_0_HIGH)];
                check(read == [Ok(0x0123_4567_89ab_cdef), Ok(0x0123_4567)], "a field read back")?;
            }
            Err(VmcsError::Unsupported(EOI_EXIT_0)) => log!("no EOI-exit bitmap"),
            Err(error) => {
                log!("{error}");
                return Err(Failure::Wrong("a write failed"));
            }
        }
        let unknown = vmcs.read(NO_SUCH_FIELD);
        check(unknown == Err(VmcsError::Unsupported(NO_SUCH_FIELD)), "there is no such field")?;
        until_finish(current, 0)
    })
}

const RSP: usize = 4;

/// Every register arrives at the host, and what the host puts there arrives at the guest.
pub(super) fn all_registers() -> Result<(), Failure> {
    with_guest(Options::default(), programs::exchange_registers, 0, |current, _, _| {
        let exit = until(current, Reason::Vmcall)?;
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

/// A register exits until the bitmap says otherwise.
pub(super) fn msr_bitmap() -> Result<(), Failure> {
    with_guest(Options::default(), programs::read_tsc, 0, |current, _, _| {
        let exit = until(current, Reason::Rdmsr)?;
        check(current.general()[1] as u32 == msr::TSC, "another register was read")?;
        current.general()[0] = 7;
        current.general()[2] = 1;
        current.skip_instruction(&exit)?;
        until_phase(current, 1)?;
        current.msr_bitmap().set_exits(msr::TSC, false, true);
        let bytes = current.msr_bitmap().bytes();
        check(bytes[2] == 0xfe && bytes[2048 + 2] == 0xff, "another bit of the bitmap changed")?;
        // The host's own time stamp is far beyond 2^32 only on a machine that has been up a while.
        current.vmcs.set(control::TSC_OFFSET_FULL, 1 << 40)?;
        current.vmcs.assign(
            control::PRIMARY_PROCBASED_EXEC_CONTROLS,
            PrimaryControls::USE_TSC_OFFSETTING.bits(),
            true,
        )?;
        until_finish(current, 1)?;
        check(current.exits().of(Reason::Rdmsr) == 1, "it exited again")
    })
}

/// In x2APIC mode the guest's accesses are MSR exits with the right number and value.
pub(super) fn x2apic_msrs() -> Result<(), Failure> {
    with_guest(Options::default(), programs::use_x2apic, 0, |current, _, _| {
        for (register, value, answer) in programs::X2APIC_USES {
            let reason = if value.is_some() { Reason::Wrmsr } else { Reason::Rdmsr };
            let exit = until(current, reason)?;
            let [rax, rcx, rdx, ..] = *current.general();
            check(rcx == u64::from(register), "another register was accessed")?;
            check(value.is_none_or(|value| (rdx, rax) == (0, value)), "another value was written")?;
            let Some(answer) = answer else {
                current.inject(Event::GeneralProtection)?;
                continue;
            };
            if reason == Reason::Rdmsr {
                current.general()[0] = answer;
                current.general()[2] = 0;
            }
            current.skip_instruction(&exit)?;
        }
        until_finish(current, 1)
    })
}
