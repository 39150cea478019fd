//! Where an application processor wakes: a few bytes of real-mode code in a page below 1 MiB (SDM Vol. 3A 9.4.4).

use core::arch::global_asm;
use core::sync::atomic::AtomicU64;

use crate::machine::smp::MAX_CPUS;

/// Top of the stack of each CPU by index. An entry of zero turns the arriving CPU away.
///
/// Written by the first CPU before it sends INIT, read by the entry code of the CPU with that ticket.
pub(crate) static AP_STACKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The page which holds the trampoline: the start-up IPI's vector.
const PAGE: u8 = 0x08;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Puts the trampoline in place and returns the vector for the start-up IPI.
pub(crate) fn install() -> u8 {
    let start = &raw const trampoline_start;
    let length = (&raw const trampoline_end).addr() - start.addr();
    let page = core::ptr::without_provenance_mut::<u8>(usize::from(PAGE) << 12);
    // SAFETY: the code lies between the two symbols below. The page is conventional memory that no firmware structure we
    // read lies in, is identity mapped, and is used for nothing else.
    unsafe { core::ptr::copy_nonoverlapping(start, page, length) };
    PAGE
}

// CS is the page, IP zero. Everything is addressed relative to the page, but for the jump into the image itself.
global_asm!(
    r#"
    .section .boot, "awx"
    .code16
    .global trampoline_start
trampoline_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt_pointer - trampoline_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap_entry32
    .balign 4
trampoline_gdt_pointer:
    .short 31
    .long boot_gdt
    .global trampoline_end
trampoline_end:
    .code64
    .text
    "#,
    options(att_syntax),
);
