//! VMCS fields as the driver reaches them, and MSRs as the guest does.

use vlapic_hal::{Vmcs, VmcsError, VmcsField};
use x86::msr;
use x86::vmx::vmcs::control::{self, PrimaryControls};

use super::{Failure, check, until, until_finish, until_phase, with_guest};
use crate::guest::{Apic, Context, apic, cpu, hypercall};
use crate::log;
use crate::vmx::Reason;
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;

extern "C" fn nothing(_: &'static Context, _: u64) -> u64 {
    0
}

/// What the APIC driver is lent works, and tells apart what can go wrong.
pub(super) fn fields() -> Result<(), Failure> {
    const EOI_EXIT_0: VmcsField = VmcsField::new(0x201c);
    const EOI_EXIT_0_HIGH: VmcsField = VmcsField::new(0x201d);
    /// Width 16 bits, guest state, index 511.
    const NO_SUCH_FIELD: VmcsField = VmcsField::new(0x0bfe);
    with_guest(Options::default(), nothing, 0, |current, _, _| {
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

/// What the guest has in a register before it calls its host: each its own.
const fn pattern(register: u64) -> u64 {
    0x0123_4567_89ab_cd00 + 0x1010_1010_1010_1010 * register + register
}

/// Has its pattern in each general register but RSP and in each XMM register, calls the host, and counts the registers that
/// then hold what they must: the general ones their complement, which the host has put there, the others what they had.
#[unsafe(naked)]
extern "C" fn exchange_registers(_: &'static Context, _: u64) -> u64 {
    core::arch::naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        ".irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "mov rdi, \\index",
        "call {pattern}",
        "push rax",
        ".endr",
        "movq xmm15, [rsp]", "movq xmm14, [rsp + 8]", "movq xmm13, [rsp + 16]",
        "movq xmm12, [rsp + 24]", "movq xmm11, [rsp + 32]", "movq xmm10, [rsp + 40]",
        "movq xmm9, [rsp + 48]", "movq xmm8, [rsp + 56]", "movq xmm7, [rsp + 64]",
        "movq xmm6, [rsp + 72]", "movq xmm5, [rsp + 80]", "movq xmm4, [rsp + 88]",
        "movq xmm3, [rsp + 96]", "movq xmm2, [rsp + 104]", "movq xmm1, [rsp + 112]",
        "movq xmm0, [rsp + 120]",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
        "pop rdi", "pop rsi", "pop rbp", "add rsp, 8", "pop rbx", "pop rdx", "pop rcx", "pop rax",
        "vmcall",
        "push r15", "push r14", "push r13", "push r12", "push r11", "push r10", "push r9", "push r8",
        "push rdi", "push rsi", "push rbp", "push 0", "push rbx", "push rdx", "push rcx", "push rax",
        "mov rdi, rsp",
        "sub rsp, 136",
        "movq [rsp], xmm0", "movq [rsp + 8], xmm1", "movq [rsp + 16], xmm2",
        "movq [rsp + 24], xmm3", "movq [rsp + 32], xmm4", "movq [rsp + 40], xmm5",
        "movq [rsp + 48], xmm6", "movq [rsp + 56], xmm7", "movq [rsp + 64], xmm8",
        "movq [rsp + 72], xmm9", "movq [rsp + 80], xmm10", "movq [rsp + 88], xmm11",
        "movq [rsp + 96], xmm12", "movq [rsp + 104], xmm13", "movq [rsp + 112], xmm14",
        "movq [rsp + 120], xmm15",
        "mov rsi, rsp",
        "call {count_right}",
        "add rsp, 264",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        pattern = sym pattern_of,
        count_right = sym count_right,
    )
}

extern "C" fn pattern_of(register: u64) -> u64 {
    pattern(register)
}

extern "C" fn count_right(general: &[u64; 16], xmm: &[u64; 16]) -> u64 {
    let count = |held: &[u64; 16], right: fn(u64) -> u64| {
        (0..).zip(held).filter(|&(index, &value)| value == right(index)).count() as u64
    };
    count(general, |index| !pattern(index)) << 8 | count(xmm, pattern)
}

const RSP: usize = 4;

/// Every register arrives at the host, and what the host puts there arrives at the guest.
pub(super) fn all_registers() -> Result<(), Failure> {
    with_guest(Options::default(), exchange_registers, 0, |current, _, _| {
        let exit = until(current, Reason::Vmcall)?;
        for (number, register) in (0..).zip(current.general()) {
            if number != RSP as u64 {
                check(*register == pattern(number), "a register did not arrive")?;
                *register = !*register;
            }
        }
        // The host uses XMM registers in between, as compiled code does.
        log!("{:.3}", current.exits().total() as f64 * 1.25);
        current.skip_instruction(&exit)?;
        until_finish(current, 15 << 8 | 16)
    })
}

extern "C" fn read_tsc(_: &'static Context, _: u64) -> u64 {
    let first = cpu::read_msr(msr::TSC).unwrap_or(0);
    hypercall::phase(1);
    let second = cpu::read_msr(msr::TSC).unwrap_or(0);
    u64::from(first == 0x1_0000_0007 && second > first)
}

/// A register exits until the bitmap says otherwise.
pub(super) fn msr_bitmap() -> Result<(), Failure> {
    with_guest(Options::default(), read_tsc, 0, |current, _, _| {
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

extern "C" fn use_x2apic(context: &'static Context, _: u64) -> u64 {
    let base = cpu::read_msr(apic::APIC_BASE_MSR);
    let enabled = cpu::write_msr(apic::APIC_BASE_MSR, base.unwrap_or(0) | 0xc00);
    context.set_apic(Apic::X2Apic);
    let tpr = apic::read(context, apic::TPR);
    let refused = apic::write(context, apic::TPR, 0x100);
    apic::end_of_interrupt(context);
    u64::from(base.is_ok() && enabled.is_ok() && tpr == Ok(0x20) && refused.is_err())
}

/// In x2APIC mode the guest's accesses are MSR exits with the right number and value.
pub(super) fn x2apic_msrs() -> Result<(), Failure> {
    const DONE: Option<u64> = Some(0);
    const FAULT: Option<u64> = None;
    const EXPECTED: [(Reason, u32, u64, Option<u64>); 5] = [
        (Reason::Rdmsr, 0x1b, 0, Some(0xfee0_0900)),
        (Reason::Wrmsr, 0x1b, 0xfee0_0d00, DONE),
        (Reason::Rdmsr, 0x808, 0, Some(0x20)),
        (Reason::Wrmsr, 0x808, 0x100, FAULT),
        (Reason::Wrmsr, 0x80b, 0, DONE),
    ];
    with_guest(Options::default(), use_x2apic, 0, |current, _, _| {
        for (reason, register, value, answer) in EXPECTED {
            let exit = until(current, reason)?;
            let [rax, rcx, rdx, ..] = *current.general();
            check(rcx == u64::from(register), "another register was accessed")?;
            check(
                reason == Reason::Rdmsr || (rdx, rax) == (0, value),
                "another value was written",
            )?;
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
