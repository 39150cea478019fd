//! The programs with which the layers under the APIC are tried, VMX and SVM alike.

use core::arch::naked_asm;
use core::sync::atomic::Ordering;

use super::{Apic, Context, Eoi, Fault, apic, cpu, hypercall};
use crate::instruction::mov::Width;
use crate::machine::{apic as physical, smp};

const BASE: u64 = apic::DEFAULT_BASE;

pub(crate) extern "C" fn count_rounds(_: &'static Context, rounds: u64) -> u64 {
    // Floating point survives the exits as well as integers do.
    let mut sum = 0.0_f64;
    for round in 0..rounds {
        let answer = hypercall::call(hypercall::FIRST_FREE, round, !round);
        sum += answer as f64 + 0.5;
    }
    sum as u64
}

/// In no manual, and outside what the MSR bitmap covers.
pub(crate) const NO_SUCH_MSR: u32 = 0x4000_0fff;

pub(crate) extern "C" fn make_faults(context: &'static Context, _: u64) -> u64 {
    let faults = [
        cpu::write_msr(NO_SUCH_MSR, 0x1_0000_0002).err(),
        cpu::write_cr8(16).err(),
        cpu::read_msr(NO_SUCH_MSR).err(),
    ];
    let good = [cpu::read_msr(NO_SUCH_MSR), Ok(cpu::read_cr8())];
    if good != [Ok(0x5555_6666_7777_8888), Ok(0)] || context.total() != 0 {
        return 0;
    }
    let right = |fault: &&Option<Fault>| fault.is_some_and(|f| f.vector == 13 && f.error_code == 0);
    faults.iter().filter(right).count() as u64
}

pub(crate) extern "C" fn nothing(_: &'static Context, argument: u64) -> u64 {
    argument
}

/// What the guest has in a register before it calls its host: each its own.
pub(crate) const fn pattern(register: u64) -> u64 {
    0x0123_4567_89ab_cd00 + 0x1010_1010_1010_1010 * register + register
}

/// Has its pattern in each general register but RSP and in each XMM register, calls the host, and counts the registers that
/// then hold what they must: the general ones their complement, which the host has put there, the others what they had.
#[unsafe(naked)]
pub(crate) extern "C" fn exchange_registers(_: &'static Context, _: u64) -> u64 {
    naked_asm!(
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
        "cmp byte ptr [rip + {vmmcall}], 0",
        "jne 2f",
        "vmcall",
        "jmp 3f",
        "2:",
        "vmmcall",
        "3:",
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
        vmmcall = sym hypercall::VMMCALL,
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

pub(crate) extern "C" fn read_tsc(_: &'static Context, _: u64) -> u64 {
    let first = cpu::read_msr(x86::msr::TSC).unwrap_or(0);
    hypercall::phase(1);
    let second = cpu::read_msr(x86::msr::TSC).unwrap_or(0);
    u64::from(first == 0x1_0000_0007 && second > first)
}

/// What [`use_x2apic`] does: register, value if it writes, and the answer, of which `None` is a fault.
pub(crate) const X2APIC_USES: [(u32, Option<u64>, Option<u64>); 5] = [
    (apic::APIC_BASE_MSR, None, Some(0xfee0_0900)),
    (apic::APIC_BASE_MSR, Some(0xfee0_0d00), Some(0)),
    (0x808, None, Some(0x20)),
    (0x808, Some(0x100), None),
    (0x80b, Some(0), Some(0)),
];

pub(crate) extern "C" fn use_x2apic(context: &'static Context, _: u64) -> u64 {
    let base = cpu::read_msr(apic::APIC_BASE_MSR);
    let enabled = cpu::write_msr(apic::APIC_BASE_MSR, base.unwrap_or(0) | 0xc00);
    context.set_apic(Apic::X2Apic);
    let tpr = apic::read(context, apic::TPR);
    let refused = apic::write(context, apic::TPR, 0x100);
    apic::end_of_interrupt(context);
    u64::from(base.is_ok() && enabled.is_ok() && tpr == Ok(0x20) && refused.is_err())
}

/// The interrupt that the host injects.
pub(crate) const VECTOR: u8 = 0x55;

/// Longer than anything here takes, shorter than a person waits.
pub(crate) const PATIENCE: u64 = 2_000_000;

/// Waits until its host says that it may go on; its argument says whether interrupts are on meanwhile.
pub(crate) extern "C" fn wait_for_host(context: &'static Context, interrupts: u64) -> u64 {
    if interrupts != 0 {
        cpu::interrupts_on();
    }
    hypercall::phase(1);
    u64::from(cpu::wait(PATIENCE, || context.word(0).load(Ordering::Acquire) != 0))
}

pub(crate) extern "C" fn halt_twice(context: &'static Context, _: u64) -> u64 {
    cpu::interrupts_off();
    cpu::halt();
    context.set_handling(VECTOR, Eoi::Never, None);
    cpu::wait_for_interrupt();
    u64::from(cpu::interrupts_are_on() && context.count(VECTOR) == 1)
}

pub(crate) extern "C" fn halt_once(context: &'static Context, _: u64) -> u64 {
    context.set_handling(VECTOR, Eoi::Never, None);
    cpu::wait_for_interrupt();
    u64::from(context.count(VECTOR))
}

/// Counts its own NMIs; the host's may come when word 1 says that it runs.
pub(crate) extern "C" fn count_nmis(context: &'static Context, _: u64) -> u64 {
    hypercall::phase(1);
    let own = context.count(2);
    hypercall::phase(2);
    context.word(1).store(1, Ordering::Release);
    cpu::wait(PATIENCE, || context.word(0).load(Ordering::Acquire) != 0);
    u64::from(own) << 8 | u64::from(context.count(2))
}

/// Sends the first CPU an NMI as soon as its guest, which executes [`count_nmis`], runs.
pub(crate) fn send_nmi_to_first(_: usize) {
    while super::context(0).word(1).load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    physical::send_nmi(smp::apic_id(0));
}

pub(crate) extern "C" fn open_a_window(context: &'static Context, _: u64) -> u64 {
    context.set_handling(VECTOR, Eoi::Never, None);
    hypercall::phase(1);
    let before = context.count(VECTOR);
    cpu::interrupts_on();
    u64::from(before) << 8 | u64::from(context.count(VECTOR))
}

/// What [`touch`] does to the page: offset, width, what it writes if it does, what it must be answered.
pub(crate) const TOUCHES: [(u64, Width, Option<u64>, u64); 6] = [
    (0x0f0, Width::Dword, Some(0x1ff), 0),
    (0x030, Width::Dword, None, 0x8105_0014),
    (0x100, Width::Qword, Some(0x1234_5678_9abc_def0), 0),
    (0x083, Width::Byte, Some(0x5a), 0),
    (0x091, Width::Byte, None, 0xff_77),
    (0x0a2, Width::Word, None, 0xff_8899),
];

/// What [`touch`] results in if all answers arrive.
pub(crate) const TOUCHED: u64 = 0x8105_0014_8899_0077;

pub(crate) extern "C" fn touch(_: &'static Context, _: u64) -> u64 {
    apic::write_memory(BASE, apic::SVR, 0x1ff);
    let version = apic::read_memory(BASE, apic::VERSION);
    apic::write_memory_wide(BASE, 0x100, 0x1234_5678_9abc_def0);
    let page = core::ptr::with_exposed_provenance_mut::<u8>(BASE as usize);
    // SAFETY: the guest's tables map the page, and its host answers; no Rust object is there.
    unsafe { page.wrapping_add(0x83).write_volatile(0x5a) };
    // SAFETY: as above.
    let byte = unsafe { page.wrapping_add(0x91).read_volatile() };
    // SAFETY: as above.
    let word = unsafe { page.wrapping_add(0xa2).cast::<u16>().read_volatile() };
    u64::from(version) << 32 | u64::from(word) << 16 | u64::from(byte)
}

pub(crate) extern "C" fn write_twice(_: &'static Context, _: u64) -> u64 {
    apic::write_memory(BASE, apic::SVR, 0x1ff);
    hypercall::phase(1);
    apic::write_memory(BASE, apic::SVR, 0x1fe);
    u64::from(apic::read_memory(BASE, apic::SVR))
}

pub(crate) extern "C" fn read_and_write(_: &'static Context, _: u64) -> u64 {
    let version = apic::read_memory(BASE, apic::VERSION);
    apic::write_memory(BASE, apic::VERSION, 1);
    u64::from(version)
}

pub(crate) const FIRST: u8 = 0x61;
pub(crate) const LAST: u8 = 0x62;
pub(crate) const NEVER: u8 = 0x63;

/// What the EOI register holds until the guest writes it.
pub(crate) const UNTOUCHED: u32 = 0xffff_ffff;

/// Notes what the EOI register holds while the handler's hook runs: the page is memory here.
fn note_eoi(context: &'static Context, vector: u8) {
    let eoi = apic::read_memory(BASE, apic::EOI);
    context.word(usize::from(vector & 0xf)).store(u64::from(eoi), Ordering::Relaxed);
}

pub(crate) extern "C" fn end_in_three_ways(context: &'static Context, _: u64) -> u64 {
    cpu::interrupts_on();
    let mut seen = 0;
    for (vector, eoi) in [(FIRST, Eoi::First), (LAST, Eoi::Last), (NEVER, Eoi::Never)] {
        context.set_handling(vector, eoi, Some(note_eoi));
        apic::write_memory(BASE, apic::EOI, UNTOUCHED);
        hypercall::phase(u64::from(vector));
        let after = apic::read_memory(BASE, apic::EOI);
        let during = context.word(usize::from(vector & 0xf)).load(Ordering::Relaxed);
        seen = seen << 2 | u64::from(during == 0) << 1 | u64::from(after == 0);
    }
    seen
}

pub(crate) extern "C" fn read_id(context: &'static Context, _: u64) -> u64 {
    match apic::read(context, apic::ID) {
        Ok(id) => id >> 24,
        Err(_) => u64::MAX,
    }
}

pub(crate) extern "C" fn add(context: &'static Context, argument: u64) -> u64 {
    let sum = argument as f64 * 1.5;
    context.word(1).store(argument, Ordering::Relaxed);
    hypercall::log("64-bit mode by way of real mode");
    sum as u64
}

/// Counts in its own context, and tells all others' hosts by hypercall.
pub(crate) extern "C" fn count_up(context: &'static Context, rounds: u64) -> u64 {
    for round in 0..rounds {
        context.word(2).fetch_add(round, Ordering::Relaxed);
        hypercall::phase(round);
    }
    context.word(2).load(Ordering::Relaxed)
}
