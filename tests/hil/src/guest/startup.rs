//! The first instructions of a guest: in 64-bit mode at once, or from a startup IPI through real mode.

use core::arch::global_asm;

use super::context::Context;
use super::{cpu, hypercall};

/// A guest program. Its result goes to the host with [`hypercall::finish`].
pub(crate) type Program = extern "C" fn(&'static Context, u64) -> u64;

/// The state in which a guest CPU starts in 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) rip: u64,
    /// In the order of their encoding.
    pub(crate) registers: [u64; 16],
    pub(crate) gdt: u64,
    pub(crate) gdt_limit: u16,
    pub(crate) idt: u64,
    pub(crate) idt_limit: u16,
    /// A task-state segment of 104 bytes.
    pub(crate) task: u64,
    pub(crate) gs_base: u64,
}

impl Start {
    pub(crate) const CODE_SELECTOR: u16 = 0x08;
    pub(crate) const DATA_SELECTOR: u16 = 0x10;
    /// Nothing loads it again, so the GDT need not have it.
    pub(crate) const TASK_SELECTOR: u16 = 0x18;

    /// Runs `program` with `argument` on `context`.
    pub(crate) fn new(context: &'static Context, program: Program, argument: u64) -> Self {
        let (gdt, gdt_limit) = context.gdt();
        let (idt, idt_limit) = context.idt();
        let mut registers = [0; 16];
        let [_, _, rdx, _, rsp, _, rsi, rdi, ..] = &mut registers;
        *rdi = context.address();
        *rsi = program as usize as u64;
        *rdx = argument;
        *rsp = context.stack_pointer();
        Self {
            rip: main as extern "C" fn(_, _, _) -> _ as usize as u64,
            registers,
            gdt,
            gdt_limit,
            idt,
            idt_limit,
            task: context.task(),
            gs_base: context.address(),
        }
    }
}

/// Where every guest CPU begins in Rust, with RSP as after a CALL.
extern "C" fn main(context: &'static Context, program: Program, argument: u64) -> ! {
    let value = program(context, argument);
    loop {
        hypercall::finish(value);
        cpu::interrupts_off();
        cpu::halt();
    }
}

/// Fills a page below 1 MiB with code that takes a CPU from its startup IPI, in real mode, to `start`.
///
/// `page` is mapped to the guest at `address`; the vector of the startup IPI is `address >> 12`. `cr3` is below 4 GiB.
pub(crate) fn write_trampoline(page: &mut [u8], address: u32, cr3: u64, start: &Start) {
    let first = &raw const guest_trampoline;
    let last = &raw const guest_trampoline_end;
    let length = last.addr() - first.addr();
    // SAFETY: the two labels enclose bytes of the image that nobody writes.
    let code = unsafe { core::slice::from_raw_parts(first, length) };
    page[..length].copy_from_slice(code);
    let [_, _, rdx, _, rsp, _, rsi, rdi, ..] = start.registers;
    // In the order in which the code names them, 8 bytes each.
    let data = [
        u64::from(start.gdt_limit) | start.gdt << 16,
        cr3,
        u64::from(address + LONG_MODE) | u64::from(Start::CODE_SELECTOR) << 32,
        u64::from(start.idt_limit),
        start.idt,
        start.gs_base,
        start.rip,
        rsp,
        rdi,
        rsi,
        rdx,
    ];
    for (slot, word) in page[DATA..].chunks_exact_mut(8).zip(data) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
}

/// Where the code below has its 64-bit part and its data.
const LONG_MODE: u32 = 0x80;
const DATA: usize = 0x100;

unsafe extern "C" {
    static guest_trampoline: u8;
    static guest_trampoline_end: u8;
}

// CR4.PAE, OSFXSR and OSXMMEXCPT; EFER.SCE off, LME and NXE on; CR0.PE, MP, ET, NE, WP and PG. NE is the host's in guests
// of ours (see `vmx::state`), and setting it would exit: what the guest reads is left as it is.
global_asm!(
    r#"
    .section .rodata
    .balign 16
guest_trampoline:
    .code16
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl 0x100
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl 0x108, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax
    orl $0x80010003, %eax
    movl %eax, %cr0
    ljmpl *0x110

    .org guest_trampoline + 0x80
    .code64
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    leaq guest_trampoline(%rip), %rbx
    movq 0x138(%rbx), %rsp
    movzwl 0x118(%rbx), %eax
    subq $24, %rsp
    movw %ax, 6(%rsp)
    movq 0x120(%rbx), %rax
    movq %rax, 8(%rsp)
    lidt 6(%rsp)
    addq $24, %rsp
    movl $0xc0000101, %ecx
    movl 0x128(%rbx), %eax
    movl 0x12c(%rbx), %edx
    wrmsr
    movq 0x140(%rbx), %rdi
    movq 0x148(%rbx), %rsi
    movq 0x150(%rbx), %rdx
    jmpq *0x130(%rbx)
guest_trampoline_end:
    .text
    "#,
    options(att_syntax),
);
