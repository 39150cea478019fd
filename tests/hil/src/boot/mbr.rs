//! The boot sector of our own disk image, for a BIOS: loads the image to 1 MiB and enters it.
//!
//! It reads through the BIOS's extended read (INT 13h AH=42h) into a buffer below 1 MiB, and copies upwards with segment
//! limits of 4 GiB kept from a moment in protected mode. Code and data must fit the 440 bytes before the disk signature
//! and the partition table, which the packer fills in.

use core::arch::global_asm;

/// EAX at the 32-bit entry: `HILB`.
pub(super) const LOADER_MAGIC: u32 = u32::from_be_bytes(*b"HILB");

global_asm!(
    r#"
    .section .mbr, "awx"
    .code16
    // The BIOS puts this sector at 0x7C00; the linker believes it to be at the start of the image.
    .set MBR_BASE, 0x7c00
    .set CHUNK, 64                              // sectors a read; 32 KiB at 0x10000
mbr_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $MBR_BASE, %sp
    cld
    ljmpw $0, $(MBR_BASE + mbr_flat - mbr_start)
mbr_flat:
    sti
    movb %dl, MBR_BASE + mbr_drive - mbr_start
    movw $0x2401, %ax                           // A20 through the BIOS, then through port 0x92
    int $0x15
    inb $0x92, %al
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92

    movl $__image_start, %edi
mbr_next:
    movw $(MBR_BASE + mbr_packet - mbr_start), %si
    movb $0x42, %ah
    movb MBR_BASE + mbr_drive - mbr_start, %dl
    pushl %edi
    int $0x13
    popl %edi
    jc mbr_failed

    // A BIOS may reload segment limits, so they are made anew for each chunk.
    cli
    lgdtl MBR_BASE + mbr_gdt_pointer - mbr_start
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $0x10, %bx
    movw %bx, %ds
    movw %bx, %es
    andb $0xfe, %al
    movl %eax, %cr0
    xorw %bx, %bx
    movw %bx, %ds
    movw %bx, %es
    movl $0x10000, %esi
    movl $(CHUNK * 512 / 4), %ecx
    .byte 0x67, 0xf3, 0x66, 0xa5                // addr32 rep movsl, which the assembler refuses to spell
    sti

    movl MBR_BASE + mbr_lba - mbr_start, %eax
    addl $CHUNK, %eax
    movl %eax, MBR_BASE + mbr_lba - mbr_start
    cmpl $__file_sectors, %eax
    jb mbr_next

    cli
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $0x10, %bx
    movw %bx, %ds
    movw %bx, %es
    movw %bx, %ss
    movl ${magic}, %eax
    xorl %ebx, %ebx
    ljmpl $0x08, $entry32

mbr_failed:
    movw $(MBR_BASE + mbr_message - mbr_start), %si
1:  lodsb
    testb %al, %al
    jz 2f
    movb $0x0e, %ah
    movw $7, %bx
    int $0x10
    jmp 1b
2:  hlt
    jmp 2b

mbr_message:
    .asciz "hil: disk read failed"
mbr_drive:
    .byte 0
    .balign 4
mbr_packet:
    .byte 16, 0
    .short CHUNK
    .short 0, 0x1000                            // offset, segment
mbr_lba:
    .quad 0
    .balign 8
mbr_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
mbr_gdt_pointer:
    .short 23
    .long MBR_BASE + mbr_gdt - mbr_start
    .org 440                                    // an error here: the code above is too long
    .org 510
    .byte 0x55, 0xaa
    .code64
    .text
    "#,
    magic = const LOADER_MAGIC,
    options(att_syntax),
);
