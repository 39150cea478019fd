//! The Multiboot 1 and 2 headers, and what is read from such a loader.

use core::arch::global_asm;

/// EAX when a Multiboot 1 loader enters us (Multiboot 0.6.96, 3.2).
pub(super) const LOADER_MAGIC_1: u32 = 0x2bad_b002;
/// EAX when a Multiboot 2 loader enters us (Multiboot 2.0, 3.3).
pub(super) const LOADER_MAGIC_2: u32 = 0x36d7_6289;

/// Tag types: the command line, and a copy of the ACPI root pointer of version 1 or later (Multiboot 2.0, 3.6).
const TAG_COMMAND_LINE: u32 = 1;
const TAG_ACPI_OLD: u32 = 14;
const TAG_ACPI_NEW: u32 = 15;

/// Where the copy of the ACPI root pointer is in the Multiboot 2 information.
pub(super) fn acpi_root(information: u32) -> Option<u64> {
    find_tag(information, TAG_ACPI_NEW).or_else(|| find_tag(information, TAG_ACPI_OLD))
}

/// Where the command line is in the Multiboot 1 information: offset 16, valid if flag 2 is set (Multiboot 0.6.96, 3.3).
pub(super) fn command_line_1(information: u32) -> Option<u64> {
    let information = u64::from(information);
    (read(information) & 1 << 2 != 0).then(|| u64::from(read(information + 16)))
}

/// Where the command line is in the Multiboot 2 information.
pub(super) fn command_line_2(information: u32) -> Option<u64> {
    find_tag(information, TAG_COMMAND_LINE)
}

/// The contents of the first tag of a type.
fn find_tag(information: u32, wanted: u32) -> Option<u64> {
    let mut address = u64::from(information) + 8;
    let end = u64::from(information) + u64::from(read(u64::from(information)));
    while address + 8 <= end {
        let (kind, size) = (read(address), read(address + 4));
        if kind == wanted {
            return Some(address + 8);
        }
        if kind == 0 || size < 8 {
            break;
        }
        address += u64::from(size).next_multiple_of(8);
    }
    None
}

fn read(address: u64) -> u32 {
    // SAFETY: the loader promises a readable structure below 4 GiB, which the boot page tables map, and all words read here
    // are aligned in it (Multiboot 0.6.96, 3.3; Multiboot 2.0, 3.4).
    unsafe { core::ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() }
}

// Multiboot 1 with its address fields (flag bit 16), because loaders take no 64-bit ELF file otherwise. Multiboot 2 with
// the address and entry tags, for the same bytes.
global_asm!(
    r#"
    .section .multiboot, "a"
    .set MB1_MAGIC, 0x1badb002
    .set MB1_FLAGS, 0x00010003
    .balign 4
mb1_header:
    .long MB1_MAGIC
    .long MB1_FLAGS
    .long -(MB1_MAGIC + MB1_FLAGS)
    .long mb1_header
    .long __image_start
    .long __file_end
    .long __image_end
    .long entry32

    .set MB2_MAGIC, 0xe85250d6
    .balign 8
mb2_header:
    .long MB2_MAGIC
    .long 0
    .long mb2_header_end - mb2_header
    .long -(MB2_MAGIC + mb2_header_end - mb2_header)
    // address
    .short 2, 0
    .long 24
    .long mb2_header
    .long __image_start
    .long __file_end
    .long __image_end
    // entry address
    .short 3, 0
    .long 12
    .long entry32
    .balign 8
    // end
    .short 0, 0
    .long 8
mb2_header_end:
    .text
    "#,
    options(att_syntax),
);
