//! A VM's guest-physical memory: extended page tables on Intel, nested ones on AMD.

use vlapic_core::SvrWrites;

use super::apics::PAGES;
use super::vm::{Config, address, apic_access_page, silent_page};
use super::{HypervisorError, Level};
use crate::guest::apic::DEFAULT_BASE;
use crate::svm::npt::{self, Npt};
use crate::vmx::ept::{self, Ept};
use crate::{svm, vmx};

/// One VM's tables.
pub(super) enum Memory {
    Extended(Ept),
    Nested(Npt),
}

impl Memory {
    /// The image's memory, and what `config` adds to it.
    pub(super) fn new(config: &Config) -> Result<Self, HypervisorError> {
        let mut memory = if config.level.is_svm() {
            svm::capability::enable()?;
            Self::Nested(Npt::identity()?)
        } else {
            Self::Extended(Ept::identity(&vmx::capability::enable()?)?)
        };
        if !config.level.is_svm() && config.level >= Level::ApicAccess {
            memory.map_data(DEFAULT_BASE, address(apic_access_page()))?;
        }
        if let Some((guest, host)) = config.low_page {
            memory.map_code(guest, host)?;
        }
        if config.svr_writes != SvrWrites::Exit {
            for (index, page) in PAGES.iter().enumerate().take(config.vcpus) {
                memory.map_data(silent_page(index), address(page))?;
            }
        }
        Ok(memory)
    }

    /// The word that names the tables in a VMCS: the EPT pointer; in a control block: N_CR3.
    pub(super) fn root(&self) -> u64 {
        match self {
            Self::Extended(ept) => ept.pointer(),
            Self::Nested(npt) => npt.root(),
        }
    }

    /// Maps the register window for AVIC: the processor takes the permissions and goes elsewhere.
    pub(super) fn map_window(&mut self) -> Result<(), HypervisorError> {
        self.map_data(DEFAULT_BASE, address(apic_access_page()))
    }

    /// Takes it away again. Translations of it may be left.
    pub(super) fn unmap_window(&mut self) -> Result<(), HypervisorError> {
        if let Self::Nested(npt) = self {
            npt.unmap_4k(DEFAULT_BASE)?;
        }
        Ok(())
    }

    fn map_data(&mut self, guest: u64, host: u64) -> Result<(), HypervisorError> {
        match self {
            Self::Extended(ept) => {
                ept.map_4k(guest, host, ept::Permissions::DATA, ept::MemoryType::WriteBack)?;
            }
            Self::Nested(npt) => {
                npt.map_4k(guest, host, npt::Permissions::ALL, npt::MemoryType::WriteBack)?;
            }
        }
        Ok(())
    }

    fn map_code(&mut self, guest: u64, host: u64) -> Result<(), HypervisorError> {
        match self {
            Self::Extended(ept) => {
                ept.map_4k(guest, host, ept::Permissions::ALL, ept::MemoryType::WriteBack)?;
            }
            Self::Nested(npt) => {
                npt.map_4k(guest, host, npt::Permissions::ALL, npt::MemoryType::WriteBack)?;
            }
        }
        Ok(())
    }
}
