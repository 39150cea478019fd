//! The program as an EFI application: one section in a PE32+ file.

use anyhow::Result;
use object::pe;
use object::write::pe::{NtHeaders, Writer};

use super::program::Program;

const PAGE: u32 = 0x1000;

/// Wraps the program.
///
/// There are no relocations, and the file does not say that they were stripped, so firmware may load it anywhere; the
/// entry moves it to its place. Its memory is there behind the file's bytes, which is where the entry keeps the memory map.
pub(super) fn wrap(program: &Program) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut writer = Writer::new(true, PAGE, super::SECTOR as u32, &mut file);
    writer.reserve_dos_header();
    writer.reserve_nt_headers(16);
    writer.reserve_section_headers(1);
    let characteristics = pe::IMAGE_SCN_CNT_CODE
        | pe::IMAGE_SCN_MEM_EXECUTE
        | pe::IMAGE_SCN_MEM_READ
        | pe::IMAGE_SCN_MEM_WRITE;
    let size = u32::try_from(program.bytes.len())?;
    let section = writer.reserve_section(
        *b".text\0\0\0",
        characteristics,
        program.memory_size.max(size),
        size,
    );

    writer.write_empty_dos_header()?;
    writer.write_nt_headers(NtHeaders {
        machine: pe::IMAGE_FILE_MACHINE_AMD64,
        time_date_stamp: 0,
        characteristics: pe::IMAGE_FILE_EXECUTABLE_IMAGE | pe::IMAGE_FILE_LARGE_ADDRESS_AWARE,
        major_linker_version: 0,
        minor_linker_version: 0,
        address_of_entry_point: section.virtual_address + program.uefi_entry,
        image_base: 0x40_0000,
        major_operating_system_version: 0,
        minor_operating_system_version: 0,
        major_image_version: 0,
        minor_image_version: 0,
        major_subsystem_version: 0,
        minor_subsystem_version: 0,
        subsystem: pe::IMAGE_SUBSYSTEM_EFI_APPLICATION,
        dll_characteristics: pe::DllFlags(0),
        size_of_stack_reserve: 0,
        size_of_stack_commit: 0,
        size_of_heap_reserve: 0,
        size_of_heap_commit: 0,
    });
    writer.write_section_headers();
    writer.write_section(section.file_offset, &program.bytes);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use object::LittleEndian;
    use object::read::pe::PeFile64;
    use object::{Object as _, ObjectSection as _};

    use super::*;

    #[test]
    fn firmware_finds_the_program_and_its_entry() {
        let program = Program { bytes: vec![0x90; 0x600], memory_size: 0x9000, uefi_entry: 0x123 };
        let file = wrap(&program).unwrap();
        let parsed = PeFile64::parse(&*file).unwrap();
        let header = parsed.nt_headers().optional_header;
        assert_eq!(header.subsystem.get(LittleEndian), pe::IMAGE_SUBSYSTEM_EFI_APPLICATION);
        let section = parsed.sections().next().unwrap();
        assert_eq!(parsed.entry(), section.address() + 0x123);
        assert_eq!(section.data().unwrap(), program.bytes);
        assert!(section.size() >= 0x9000);
        assert_eq!(parsed.sections().count(), 1);
    }
}
