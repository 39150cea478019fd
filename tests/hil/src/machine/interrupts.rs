//! The interrupt table of all CPUs: one handler a vector, and how often each CPU took each vector.

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use x86::dtables::{self, DescriptorTablePointer};
use x86::io::outb;

use super::cpu::{IST_EXCEPTION, IST_INTERRUPT, IST_NMI, this_cpu};
use super::smp::MAX_CPUS;
use super::{apic, console, exit, msr};
use crate::boot::CODE_SELECTOR;

/// What a handler is given: the interrupted state, which it may change.
///
/// The order is the entry code's and the processor's (SDM Vol. 3A Figure 6-9).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    /// The exception's error code, or zero.
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Runs with interrupts off, on a stack of its own; the EOI follows when it returns.
pub(crate) type Handler = fn(&mut Frame);

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static COUNTS: [[AtomicU64; 256]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; 256] }; MAX_CPUS];

/// CPUs on which nobody but the interrupted program ends an interrupt.
static KEPT: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Makes `handler` the one for `vector` on all CPUs. Without one, an interrupt is counted and an exception ends the run.
pub(crate) fn set_handler(vector: u8, handler: Handler) {
    // Release pairs with the Acquire in `handle`: what the setter prepared is seen by the handler.
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Release);
}

pub(crate) fn clear_handler(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::Release);
}

/// Whether interrupts of a CPU stay in service when their handlers return.
pub(crate) fn keep_in_service(cpu: usize, keep: bool) {
    // Relaxed: that CPU itself asks.
    KEPT[cpu].store(keep, Ordering::Relaxed);
}

/// How often `vector` was taken, on all CPUs together.
pub(crate) fn count(vector: u8) -> u64 {
    (0..MAX_CPUS).map(|cpu| count_on(cpu, vector)).sum()
}

/// How often `vector` was taken on one CPU.
pub(crate) fn count_on(cpu: usize, vector: u8) -> u64 {
    // Acquire pairs with the Release in `handle`: who sees the count sees what the handlers before it did.
    COUNTS[cpu][usize::from(vector)].load(Ordering::Acquire)
}

/// Does what an interrupt on this vector does: for a VM exit that has already acknowledged it (SDM Vol. 3C 27.2.2).
pub(crate) fn deliver(vector: u8) {
    without(|| handle(&mut Frame { vector: u64::from(vector), ..Frame::default() }));
}

/// Runs `body` with interrupts off and puts the flag back as it was.
pub(crate) fn without<T>(body: impl FnOnce() -> T) -> T {
    let enabled = x86::bits64::rflags::read().contains(x86::bits64::rflags::RFlags::FLAGS_IF);
    // SAFETY: turning interrupts off only delays them.
    unsafe { x86::irq::disable() };
    let result = body();
    if enabled {
        enable();
    }
    result
}

/// Lets interrupts in. Every CPU has its table loaded before it first calls this.
pub(crate) fn enable() {
    // SAFETY: `load` has run on this CPU, so every vector has an entry and a stack.
    unsafe { x86::irq::enable() };
}

/// Waits for an interrupt with interrupts on; none that arrives after `ready` is looked at can be missed. Returns with
/// interrupts on.
pub(crate) fn wait_unless(ready: impl FnOnce() -> bool) {
    // SAFETY: they are turned on again below in either case.
    unsafe { x86::irq::disable() };
    if ready() {
        enable();
        return;
    }
    // SAFETY: STI holds interrupts off until after the next instruction (SDM Vol. 2B), so HLT is always ended by one that
    // was pending; `load` has run on this CPU.
    unsafe { core::arch::asm!("sti", "hlt", options(nostack)) };
}

/// Fills the table and silences the two PICs, whose vectors lie among the exceptions. The first CPU calls this once.
pub(super) fn initialise() {
    let stubs = &raw const interrupt_stubs;
    for (vector, entry) in IDT.chunks_exact(2).enumerate() {
        let stub = stubs.wrapping_add(vector * STUB_SIZE).addr() as u64;
        let ist = match vector {
            2 => IST_NMI,
            0..32 => IST_EXCEPTION,
            _ => IST_INTERRUPT,
        };
        // A 64-bit interrupt gate, present (SDM Vol. 3A Figure 6-8).
        let low = stub & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | u64::from(ist) << 32
            | 0x8e << 40
            | (stub >> 16 & 0xffff) << 48;
        entry[0].store(low, Ordering::Relaxed);
        entry[1].store(stub >> 32, Ordering::Relaxed);
    }
    for port in [0x21, 0xa1] {
        // SAFETY: masks all lines of a PIC.
        unsafe { outb(port, 0xff) };
    }
}

/// Makes the table this CPU's.
pub(super) fn load() {
    let pointer = DescriptorTablePointer::new_from_slice(&IDT);
    // SAFETY: the table is static and was filled before any CPU gets here.
    unsafe { dtables::lidt(&pointer) };
}

static IDT: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];

const STUB_SIZE: usize = 16;

/// The entry code calls this with interrupts off.
extern "C" fn handle(frame: &mut Frame) {
    let vector = (frame.vector & 0xff) as usize;
    let handler = HANDLERS[vector].load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: only `set_handler` stores anything but zero, and what it stores is a `Handler`.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        handler(frame);
    } else if vector < 32
        && !(vector == usize::from(x86::irq::GENERAL_PROTECTION_FAULT_VECTOR)
            && msr::recover(frame))
    {
        fatal(frame);
    }
    COUNTS[this_cpu()][vector].fetch_add(1, Ordering::Release);
    let kept = KEPT[this_cpu()].load(Ordering::Relaxed);
    if vector >= 32 && vector != usize::from(apic::SPURIOUS_VECTOR) && !kept {
        apic::eoi();
    }
}

fn fatal(frame: &Frame) -> ! {
    console::seize();
    crate::log!("exception on cpu {}: {frame}", this_cpu());
    exit::exit(1)
}

impl fmt::Display for Frame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = (self.vector & 0xff) as usize;
        let name =
            x86::irq::EXCEPTIONS.get(vector).map_or("interrupt", |exception| exception.mnemonic);
        // SAFETY: reading CR2 has no side effects.
        let cr2 = unsafe { x86::controlregs::cr2() };
        write!(formatter, "vector {vector} {name} error {:#x} cr2 {cr2:#x}", self.error)?;
        let registers = [
            ("rip", self.rip),
            ("cs", self.cs),
            ("rflags", self.rflags),
            ("rsp", self.rsp),
            ("ss", self.ss),
            ("rax", self.rax),
            ("rbx", self.rbx),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("rbp", self.rbp),
            ("r8", self.r8),
            ("r9", self.r9),
            ("r10", self.r10),
            ("r11", self.r11),
            ("r12", self.r12),
            ("r13", self.r13),
            ("r14", self.r14),
            ("r15", self.r15),
        ];
        registers.iter().try_for_each(|(name, value)| write!(formatter, " {name} {value:#x}"))
    }
}

unsafe extern "C" {
    static interrupt_stubs: u8;
}

// Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code (SDM Vol. 3A Table 6-1; APM Vol. 2 Table 8-1); the others get
// a zero in its place.
global_asm!(
    r#"
    .text
    .balign 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30) && ((vector < 10) || (vector > 14))
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_entry
    .set vector, vector + 1
    .endr

    .balign 16
interrupt_entry:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    call {handle}
    fxrstor64 (%rsp)
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
    "#,
    handle = sym handle,
    options(att_syntax),
);
