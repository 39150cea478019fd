//! The EFI system partition: a FAT16 volume with one file, where firmware looks on removable media (UEFI 2.10, 3.5.1.1).

use std::io::{Cursor, Write};

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::SECTOR;

/// FAT16 begins at 4085 clusters; some more, because drivers differ about the exact number. One sector a cluster.
const LEAST_CLUSTERS: usize = 4200;

/// Bytes of a volume that can hold a file of that length.
pub(super) fn size_for(file: usize) -> usize {
    /// Boot sector, two tables of at most 256 sectors, root directory, two directories.
    const OVERHEAD: usize = 600;
    (file.div_ceil(SECTOR).max(LEAST_CLUSTERS) + OVERHEAD) * SECTOR
}

/// Makes a volume of the whole of `area`, with the file in it.
pub(super) fn format(area: &mut [u8], file: &[u8]) -> Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .bytes_per_cluster(SECTOR as u32)
        .volume_label(*b"HIL        ")
        .volume_id(0x4849_4c31);
    fatfs::format_volume(Cursor::new(&mut *area), options)
        .context("cannot make the EFI system partition")?;
    let volume = FileSystem::new(Cursor::new(area), FsOptions::new())?;
    {
        let folder = volume.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
        let mut entry = folder.create_file("BOOTX64.EFI")?;
        entry.write_all(file).context("the file does not fit the EFI system partition")?;
        entry.flush()?;
    }
    volume.unmount().context("cannot finish the EFI system partition")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn file_can_be_read_back() {
        for length in [0, 1, SECTOR, 3_000_000] {
            let file: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let mut area = vec![0; size_for(length)];
            format(&mut area, &file).unwrap();
            let volume = FileSystem::new(Cursor::new(&mut area[..]), FsOptions::new()).unwrap();
            assert_eq!(volume.fat_type(), FatType::Fat16);
            let mut found = Vec::new();
            volume
                .root_dir()
                .open_file("EFI/BOOT/BOOTX64.EFI")
                .unwrap()
                .read_to_end(&mut found)
                .unwrap();
            assert_eq!(found, file);
        }
    }
}
