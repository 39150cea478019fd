//! The raw disk image: made from the ELF, bootable by a BIOS and by UEFI firmware.
//!
//! ```text
//! sector 0            boot sector, its partition table filled in here; also the first sector of the program
//! ...                 the rest of the program, as it lies in memory from 1 MiB on
//! sector 8192         EFI system partition (FAT16) with the program once more, as \EFI\BOOT\BOOTX64.EFI
//! ```

mod command_line;
mod efi_file;
mod esp;
mod program;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

pub(crate) use command_line::set_command_line;

use program::Program;

const SECTOR: usize = 512;

/// Emulated disks have whole cylinders of 16 heads and 63 sectors.
const CYLINDER: usize = 16 * 63 * SECTOR;

/// Makes the raw disk image `out` from the image's ELF.
pub(crate) fn pack(elf: &Path, out: &Path) -> Result<()> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let image = disk(&Program::from_elf(&bytes)?)?;
    fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))
}

fn disk(program: &Program) -> Result<Vec<u8>> {
    const PARTITION_START: usize = 8192 * SECTOR;
    ensure!(
        program.bytes.len() <= PARTITION_START,
        "the program does not fit before the partition"
    );
    let efi_file = efi_file::wrap(program)?;
    let size = (PARTITION_START + esp::size_for(efi_file.len())).next_multiple_of(CYLINDER);

    let mut disk = vec![0; size];
    disk[..program.bytes.len()].copy_from_slice(&program.bytes);
    esp::format(&mut disk[PARTITION_START..], &efi_file)?;
    partition(&mut disk, PARTITION_START / SECTOR)?;
    Ok(disk)
}

/// Fills in the boot sector's disk signature and its table: one partition, to the end of the disk.
fn partition(disk: &mut [u8], first: usize) -> Result<()> {
    const SIGNATURE: usize = 440;
    const TABLE: usize = 446;
    const END: usize = 510;
    ensure!(disk[END..SECTOR] == [0x55, 0xaa], "the program does not start with a boot sector");
    ensure!(
        disk[SIGNATURE..END].iter().all(|&byte| byte == 0),
        "the boot sector's code runs into its partition table"
    );
    let count = disk.len() / SECTOR - first;
    disk[SIGNATURE..SIGNATURE + 4].copy_from_slice(b"HIL1");
    let entry = &mut disk[TABLE..TABLE + 16];
    // Active, because some BIOSes start no disk without an active partition; type 0xEF, EFI system partition. The
    // cylinder addresses say "out of range", which makes everyone use the sector numbers.
    entry[..8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0xef, 0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&u32::try_from(first)?.to_le_bytes());
    entry[12..].copy_from_slice(&u32::try_from(count)?.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        let mut bytes = vec![0; 3 * SECTOR];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[SECTOR..].fill(7);
        Program { bytes, memory_size: 0x10000, uefi_entry: 0x208 }
    }

    #[test]
    fn disk_has_program_table_and_whole_cylinders() {
        let disk = disk(&program()).unwrap();
        assert_eq!(disk.len() % CYLINDER, 0);
        assert_eq!(disk[SECTOR..3 * SECTOR], program().bytes[SECTOR..]);
        let word = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap());
        assert_eq!(disk[450], 0xef);
        assert_eq!(word(454), 8192);
        assert_eq!(word(458) as usize, disk.len() / SECTOR - 8192);
        assert_eq!(&disk[8192 * SECTOR + 510..][..2], [0x55, 0xaa]);
    }

    #[test]
    fn program_without_boot_sector_is_refused() {
        let mut program = program();
        program.bytes[511] = 0;
        assert!(disk(&program).is_err());
    }

    #[test]
    fn boot_code_in_the_partition_table_is_refused() {
        let mut program = program();
        program.bytes[446] = 0x90;
        assert!(disk(&program).is_err());
    }
}
