//! The 32-bit entry, and the way from protected mode without paging into 64-bit mode, for the first CPU and all others.

use core::arch::global_asm;

/// Selector of the 64-bit code segment, in the boot GDT and in every later one.
pub(crate) const CODE_SELECTOR: u16 = 0x18;
/// Selector of the first task-state segment in the GDT which replaces the boot GDT.
pub(crate) const GDT_TSS_BASE: u16 = 0x20;

// CR4: PAE, and OSFXSR and OSXMMEXCPT because compiled Rust uses SSE from its first instruction (SDM Vol. 3A 2.5).
// CR0: PE MP ET NE WP PG, and so not EM, nor CD and NW, which INIT leaves set (SDM Vol. 3A Table 11-1).
// EFER (0xC0000080): LME and NXE.
global_asm!(
    r#"
    .section .boot, "awx"
    .code32

    .global entry32
entry32:
    cli
    cld
    movl %eax, %ebp                 // loader magic
    movl %ebx, %esi                 // loader information
    lgdtl boot_gdt_pointer32
    ljmpl $0x08, $1f
1:  movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs

    // No loader is relied on for a zeroed .bss.
    movl $__file_end, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    movl $bsp_entry64, %edi
    jmp enter_long_mode

    // An application processor comes here from its real-mode trampoline, in flat protected mode.
    .global ap_entry32
ap_entry32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl $ap_entry64, %edi

    // EDI = 64-bit address to go on at; EBP and ESI are kept.
enter_long_mode:
    movl $0x00000620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x00000900, %eax
    wrmsr
    movl $0x80010033, %eax
    movl %eax, %cr0
    ljmpl $0x18, $1f
    .code64
1:  movl %edi, %edi                 // the upper half is undefined after the change of mode
    jmpq *%rdi

bsp_entry64:
    leaq boot_stack_top(%rip), %rsp
    movl %ebp, %edi
    movl %esi, %esi
    xorl %ebp, %ebp
    call {start}
    ud2

ap_entry64:
    // Order of arrival is the CPU's index; the first CPU is 0.
    movl $1, %edi
    lock xaddl %edi, ap_ticket(%rip)
    cmpl ${max_cpus}, %edi
    jae 2f
    leaq {stacks}(%rip), %rax
    movq (%rax, %rdi, 8), %rsp
    testq %rsp, %rsp
    jz 2f
    xorl %ebp, %ebp
    call {ap_start}
    ud2
2:  cli                             // more CPUs than anyone announced
    hlt
    jmp 2b

    .balign 8
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        // 0x08 32-bit code
    .quad 0x00cf93000000ffff        // 0x10 data
    .quad 0x00af9b000000ffff        // 0x18 64-bit code
boot_gdt_end:
    .global boot_gdt_pointer
    // Read as 2 + 4 bytes by 16- and 32-bit code and as 2 + 8 bytes by 64-bit code.
boot_gdt_pointer32:
boot_gdt_pointer:
    .short boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

    .balign 4
ap_ticket:
    .long 1

    // Identity map of the first 4 GiB in 2 MiB pages: present, writable.
    .section .page_tables, "aw"
    .balign 4096
    .global boot_pml4
boot_pml4:
    .quad boot_pdpt + 0x3
    .fill 511, 8, 0
    .global boot_pdpt
boot_pdpt:
    .quad boot_directories + 0x0003
    .quad boot_directories + 0x1003
    .quad boot_directories + 0x2003
    .quad boot_directories + 0x3003
    .fill 508, 8, 0
boot_directories:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr

    .section .bss.boot_stack, "aw", @nobits
    .balign 16
    .fill 0x10000, 1, 0
boot_stack_top:
    .text
    "#,
    start = sym crate::boot_processor,
    ap_start = sym crate::machine::smp::application_processor,
    stacks = sym super::trampoline::AP_STACKS,
    max_cpus = const crate::machine::smp::MAX_CPUS,
    options(att_syntax),
);
