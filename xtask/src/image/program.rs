//! What the packer needs from the ELF.

use anyhow::{Context, Result, ensure};
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectSymbol as _};

/// The program as flat bytes.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The file's part of it, from the link address on; whole sectors.
    pub(super) bytes: Vec<u8>,
    /// All it takes in memory, in bytes.
    pub(super) memory_size: u32,
    /// Where UEFI firmware enters, from the start of the bytes.
    pub(super) uefi_entry: u32,
}

impl Program {
    pub(super) fn from_elf(elf: &[u8]) -> Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(elf).context("not a 64-bit ELF file")?;
        let segments = header.program_headers(LittleEndian, elf)?;
        let mut loads = segments.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
        let segment = loads.next().context("no loadable segment")?;
        ensure!(
            loads.next().is_none(),
            "more than one loadable segment: the file is not as it lies in memory"
        );

        let mut bytes =
            segment.data(LittleEndian, elf).ok().context("the file is cut off")?.to_vec();
        bytes.resize(bytes.len().next_multiple_of(super::SECTOR), 0);
        let start = segment.p_vaddr(LittleEndian);
        let file = ElfFile64::<LittleEndian>::parse(elf)?;
        let entry = file.symbol_by_name("uefi_entry").context("no symbol uefi_entry")?.address();
        Ok(Self {
            bytes,
            memory_size: segment.p_memsz(LittleEndian).try_into()?,
            uefi_entry: entry
                .checked_sub(start)
                .context("uefi_entry lies outside the program")?
                .try_into()?,
        })
    }
}
