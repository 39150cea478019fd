//! The UEFI entry: leaves boot services, copies the image to 1 MiB and enters it in 32-bit mode.
//!
//! The firmware may load the file anywhere, and the image is linked for one address, so the entry is position-independent
//! assembly. Turning paging off and on again also gets rid of whatever the firmware had set up (five-level paging, for
//! one).

use core::arch::global_asm;

/// EAX at the 32-bit entry: `HILU`.
pub(super) const LOADER_MAGIC: u32 = u32::from_be_bytes(*b"HILU");

/// Offsets in EFI_SYSTEM_TABLE (UEFI 2.10, 4.3).
const TABLE_ENTRIES: u64 = 0x68;
const TABLE_LIST: u64 = 0x70;
/// EFI_ACPI_20_TABLE_GUID and ACPI_TABLE_GUID as they lie in memory (UEFI 2.10, 4.6).
const ACPI_2: [u64; 2] = [0x11d3_e4f1_8868_e871, 0x8188_3cc7_8000_22bc];
const ACPI_1: [u64; 2] = [0x11d3_2d88_eb9d_2d30, 0x4dc1_3f27_9000_169a];

unsafe extern "C" {
    static uefi_system_table: u64;
}

/// The ACPI root pointer from the firmware's configuration tables, which outlive the boot services.
pub(super) fn acpi_root() -> Option<u64> {
    let table = read(&raw const uefi_system_table as u64);
    let (entries, list) = (read(table + TABLE_ENTRIES), read(table + TABLE_LIST));
    let find = |guid: [u64; 2]| {
        (0..entries.min(256))
            .map(|index| list + index * 24)
            .find(|&entry| [read(entry), read(entry + 8)] == guid)
            .map(|entry| read(entry + 16))
    };
    find(ACPI_2).or_else(|| find(ACPI_1))
}

fn read(address: u64) -> u64 {
    // SAFETY: the system table and the configuration table are runtime data which the firmware leaves in place after
    // ExitBootServices (UEFI 2.10, 7.4.6), in memory that the page tables map.
    unsafe { core::ptr::with_exposed_provenance::<u64>(address as usize).read_unaligned() }
}

// Microsoft calling convention: arguments in RCX, RDX, R8, R9, then the stack above 32 bytes of shadow space.
// EFI_SYSTEM_TABLE.BootServices is at 0x60; in EFI_BOOT_SERVICES: AllocatePages 0x28, GetMemoryMap 0x38,
// ExitBootServices 0xE8 (UEFI 2.10, 4.4). The memory map goes behind the bytes of the file, where the packer leaves as
// much room as .bss and the frames will take.
global_asm!(
    r#"
    .set UEFI_MAP_SIZE, 0x10000
    .section .boot, "awx"
    .code64
    .global uefi_entry
uefi_entry:
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    subq $0x68, %rsp
    movq %rcx, %r12                             // image handle
    movq %rdx, %r13                             // system table
    movq 0x60(%rdx), %r14                       // boot services

    // Loaded where the copy must go? Then give up while the firmware can still say so.
    leaq __image_start(%rip), %rax
    cmpq $__image_end, %rax
    jb 9f

    // AllocateAddress, EfiLoaderCode. A refusal means that boot services use the memory, and they end now.
    movq $__image_start, 0x20(%rsp)
    movl $2, %ecx
    movl $1, %edx
    movl $__image_pages, %r8d
    leaq 0x20(%rsp), %r9
    callq *0x28(%r14)

    // The map's key goes stale whenever the map changes, so both calls are tried again together.
    movl $16, %ebx
1:  movq $UEFI_MAP_SIZE, 0x30(%rsp)
    leaq 0x30(%rsp), %rcx
    leaq __file_end(%rip), %rdx
    leaq 0x38(%rsp), %r8
    leaq 0x40(%rsp), %r9
    leaq 0x48(%rsp), %rax
    movq %rax, 0x20(%rsp)
    callq *0x38(%r14)
    testq %rax, %rax
    jnz 8f
    movq %r12, %rcx
    movq 0x38(%rsp), %rdx
    callq *0xe8(%r14)
    testq %rax, %rax
    jz 2f
    decl %ebx
    jnz 1b
8:  movq $-1, %rax
    jmp 3f
9:  movabsq $0x8000000000000001, %rax           // EFI_LOAD_ERROR
3:  addq $0x68, %rsp
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    retq

2:  cli
    cld
    leaq __image_start(%rip), %rsi
    movl $__image_start, %edi
    movl $__file_end, %ecx
    subl %edi, %ecx
    rep movsb
    // From here on in the copy, by absolute addresses.
    movq %r13, uefi_system_table
    lgdt boot_gdt_pointer
    movl $__bss_end, %esp
    pushq $0x08
    pushq $uefi_leave
    lretq

    .code32
uefi_leave:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx                      // EFER: leave LME and what else the firmware had set
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    xorl %eax, %eax
    movl %eax, %cr4
    movl ${magic}, %eax
    xorl %ebx, %ebx
    jmp entry32

    .code64
    .balign 8
    .global uefi_system_table
uefi_system_table:
    .quad 0
    .text
    "#,
    magic = const LOADER_MAGIC,
    options(att_syntax),
);
