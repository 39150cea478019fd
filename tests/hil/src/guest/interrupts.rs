//! The guest's interrupt table: every vector is counted, traced, and ended as its context says.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::context::{Context, Eoi};
use super::{Start, apic, cpu, hypercall};

/// What a case adds to the handler of a vector. Runs in the guest, interrupts off.
pub(crate) type Hook = fn(&'static Context, u8);

/// Makes each of the 256 gates point to its stub.
pub(super) fn fill(idt: &[AtomicU64; 512]) {
    const STUB_SIZE: u64 = 16;
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    let mut stub = (&raw const guest_interrupt_stubs).expose_provenance() as u64;
    for gate in idt.chunks_exact(2) {
        let low = stub & 0xffff
            | u64::from(Start::CODE_SELECTOR) << 16
            | PRESENT_INTERRUPT_GATE
            | (stub >> 16 & 0xffff) << 48;
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(stub >> 32, Ordering::Relaxed);
        stub += STUB_SIZE;
    }
}

/// What the entry code and the processor have pushed.
#[repr(C)]
struct Frame {
    scratch: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn handle(frame: &mut Frame) {
    const NMI: u8 = 2;
    let context = Context::current();
    let vector = frame.vector as u8;
    if is_exception(vector) {
        return exception(context, frame);
    }
    context.record(vector);
    let (eoi, hook) = if vector == NMI { (Eoi::Never, None) } else { context.handling(vector) };
    if eoi == Eoi::First {
        apic::end_of_interrupt(context);
    }
    if let Some(hook) = hook {
        hook(context, vector);
    }
    if eoi == Eoi::Last {
        apic::end_of_interrupt(context);
    }
}

/// Vectors that no APIC of ours sends: those below 16 but for NMI, and those for which the processor pushes an error code.
/// The other reserved ones, 16 to 31, an APIC may send, so they count as interrupts.
fn is_exception(vector: u8) -> bool {
    matches!(vector, 0..=1 | 3..=15 | 17 | 21 | 29 | 30)
}

/// Goes on at the fixup if the access was one that may fail; otherwise tells the host and stops.
fn exception(context: &Context, frame: &mut Frame) {
    let fixup = context.fixup.swap(0, Ordering::Relaxed);
    if fixup == 0 {
        loop {
            hypercall::fault(frame.vector as u8, frame.error_code as u32, frame.rip);
            cpu::halt();
        }
    }
    context.fault_rip.store(frame.rip, Ordering::Relaxed);
    let fault = frame.vector | 1 << 31 | frame.error_code << 32;
    context.fault.store(fault, Ordering::Relaxed);
    frame.rip = fixup;
}

unsafe extern "C" {
    static guest_interrupt_stubs: u8;
}

// The vectors with an error code are those in SDM Vol. 3A Table 6-1; the others get a zero in its place. Interrupted code
// has no red zone, so its own stack serves.
global_asm!(
    r#"
    .text
    .balign 16
guest_interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30) && ((vector < 10) || (vector > 14))
    pushq $0
    .endif
    pushq $vector
    jmp guest_interrupt_entry
    .set vector, vector + 1
    .endr

    .balign 16
guest_interrupt_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq %rsp, %rdi
    pushq %rbp
    movq %rsp, %rbp
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    call {handle}
    fxrstor64 (%rsp)
    movq %rbp, %rsp
    popq %rbp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
    "#,
    handle = sym handle,
    options(att_syntax),
);
