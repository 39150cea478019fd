//! From power-on to [`start`](crate::start), however the image was loaded.
//!
//! Four loaders end at the same 32-bit entry, paging off, at physical address 1 MiB: a Multiboot 1 or 2 loader, our own
//! boot sector, and our own UEFI entry.

mod long_mode;
mod mbr;
mod multiboot;
mod runtime;
mod trampoline;
mod uefi;

pub(crate) use long_mode::{CODE_SELECTOR, GDT_TSS_BASE};
pub(crate) use trampoline::{AP_STACKS, install as install_trampoline};

/// Who loaded the image, told by the value in EAX at the 32-bit entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    Multiboot1,
    Multiboot2,
    /// The boot sector of our own disk image.
    BootSector,
    /// The UEFI entry of our own disk image.
    Uefi,
    Unknown,
}

impl Loader {
    pub(crate) const fn from_magic(magic: u32) -> Self {
        match magic {
            multiboot::LOADER_MAGIC_1 => Self::Multiboot1,
            multiboot::LOADER_MAGIC_2 => Self::Multiboot2,
            mbr::LOADER_MAGIC => Self::BootSector,
            uefi::LOADER_MAGIC => Self::Uefi,
            _ => Self::Unknown,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Multiboot1 => "multiboot1",
            Self::Multiboot2 => "multiboot2",
            Self::BootSector => "boot-sector",
            Self::Uefi => "uefi",
            Self::Unknown => "unknown",
        }
    }
}

/// What the loader left for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootInformation {
    pub(crate) loader: Loader,
    /// EBX at entry: the Multiboot information structure, or nothing.
    pub(crate) address: u32,
}

impl BootInformation {
    /// The ACPI root pointer, where the loader knows it better than a scan of the BIOS area does.
    pub(crate) fn acpi_root(&self) -> Option<u64> {
        match self.loader {
            Loader::Uefi => uefi::acpi_root(),
            Loader::Multiboot2 => multiboot::acpi_root(self.address),
            _ => None,
        }
    }

    /// Where the loader has left a command line for us: text that ends with a zero byte.
    pub(crate) fn command_line(&self) -> Option<u64> {
        match self.loader {
            Loader::Multiboot1 => multiboot::command_line_1(self.address),
            Loader::Multiboot2 => multiboot::command_line_2(self.address),
            _ => None,
        }
    }
}
