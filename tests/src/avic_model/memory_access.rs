//! Loads and stores of the guest.

use crate::model::Page;

use super::access::{self, Handling};
use super::controls::Mode;
use super::exit::{Outcome, VmExit, code};
use super::guest::{Guest, Silicon};
use super::nested::{Mapping, Translation};
use super::operation::{Operation, Progress};
use super::page::offset;

/// Bits of EXITINFO1 of a nested page fault: the page is present, the access is a write, it is a user access as all
/// nested walks are, and it is the final one.
mod fault_code {
    pub(super) const PRESENT: u64 = 1;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const FINAL: u64 = 1 << 32;
}

impl<'m> Guest<'m> {
    /// A load.
    pub(super) fn load(&mut self, silicon: &mut Silicon, address: u64, width: u32) -> Progress {
        let (page, is_apic) = match self.translate(silicon, address, false) {
            Ok(found) => found,
            Err(exit) => return Progress::exit(exit),
        };
        let offset = address as u32 & 0xfff;
        if is_apic && self.read_handling(offset, width) == Handling::Fault {
            return self.unaccelerated(offset, false);
        }
        Progress::Done(Outcome::Value(load_bytes(&page, offset, width)))
    }

    /// A store.
    pub(super) fn store(
        &mut self,
        silicon: &mut Silicon,
        address: u64,
        width: u32,
        value: u64,
    ) -> Progress {
        let (page, is_apic) = match self.translate(silicon, address, true) {
            Ok(found) => found,
            Err(exit) => return Progress::exit(exit),
        };
        let offset = address as u32 & 0xfff;
        let handling = if is_apic { self.write_handling(offset, width) } else { Handling::Memory };
        match handling {
            Handling::Memory => {
                store_bytes(&page, offset, width, value);
                Progress::DONE
            }
            Handling::Fault => self.unaccelerated(offset, true),
            Handling::Trap => {
                store_bytes(&page, offset, width, value);
                self.trap(offset)
            }
            Handling::Accelerated => {
                let own = std::mem::replace(&mut self.page, page);
                let progress = self.accelerated(offset, value as u32);
                self.page = own;
                progress
            }
        }
    }

    /// What follows a write of an accelerated register. The page is the one the translation led to.
    fn accelerated(&mut self, offset: u32, value: u32) -> Progress {
        match offset {
            offset::TPR => self.write_tpr(value),
            offset::EOI => self.write_eoi(value),
            _ => {
                let high = self.page.load(offset::ICR_HIGH);
                self.write_icr(value, high)
            }
        }
    }

    /// A trap: the page is already written.
    pub(super) fn trap(&self, offset: u32) -> Progress {
        let exit = VmExit::no_acceleration(offset, true, None, true);
        Progress::Next(Operation::Trap(self.with_undefined_bits(exit)))
    }

    /// A fault: nothing happened.
    pub(super) fn unaccelerated(&self, offset: u32, write: bool) -> Progress {
        let exit = VmExit::no_acceleration(offset, write, None, false);
        Progress::exit(self.with_undefined_bits(exit))
    }

    /// Fills what the manual leaves undefined in the information of an AVIC exit.
    pub(super) fn with_undefined_bits(&self, mut exit: VmExit) -> VmExit {
        if !self.around.knobs.undefined_bits_are_set {
            return exit;
        }
        match exit.code {
            code::INCOMPLETE_IPI => {
                let index_is_defined = matches!(exit.info_2 >> 32, 1..=3);
                exit.info_2 |= if index_is_defined { 0xffff_f000 } else { 0xffff_ffff };
            }
            code::NO_ACCELERATION => {
                let is_eoi = exit.info_1 == 1 << 32 | u64::from(offset::EOI);
                exit.info_1 |= !(1 << 32 | 0xff0);
                exit.info_2 |= if is_eoi { !0xff } else { !0 };
            }
            _ => {}
        }
        exit
    }

    /// The page behind an address, and whether it is a backing page.
    fn translate(
        &self,
        silicon: &mut Silicon,
        address: u64,
        write: bool,
    ) -> Result<(Page<'m>, bool), VmExit> {
        let guest_page = address & !0xfff;
        let asid = self.controls.asid;
        let translation = match silicon.tlb.get(asid, guest_page) {
            Some(translation) => translation,
            None => {
                let found = self
                    .walk(guest_page)
                    .map_err(|present| nested_page_fault(address, write, present))?;
                silicon.tlb.insert(asid, guest_page, found);
                found
            }
        };
        let page = |address| Page::new(self.around.memory.clone(), address);
        match translation {
            Translation::Apic { backing_page } => {
                Ok((page(backing_page), self.controls.mode != Mode::Off))
            }
            Translation::Memory(mapping) if write && !mapping.writable => {
                Err(nested_page_fault(address, write, true))
            }
            Translation::Memory(mapping) => Ok((page(mapping.page), false)),
        }
    }

    /// Walks the nested tables. The error says whether there is a mapping at all.
    fn walk(&self, guest_page: u64) -> Result<Translation, bool> {
        let mapping = match self.controls.nested_cr3 {
            Some(cr3) => self.around.nested.walk(cr3, guest_page).ok_or(false)?,
            None => Mapping { page: guest_page, writable: true },
        };
        if self.controls.mode != Mode::XAvic || guest_page != self.controls.apic_bar {
            return Ok(Translation::Memory(mapping));
        }
        // The mapping only has to allow the access; where it leads does not matter.
        if !mapping.writable {
            return Err(true);
        }
        Ok(Translation::Apic { backing_page: self.controls.backing_page })
    }

    fn read_handling(&self, offset: u32, width: u32) -> Handling {
        let handling = access::read(offset & !0xf, self.around.capability, &self.around.knobs);
        self.unless_odd(offset, width, handling)
    }

    fn write_handling(&self, offset: u32, width: u32) -> Handling {
        let handling = access::write(offset & !0xf, self.around.capability, &self.around.knobs);
        self.unless_odd(offset, width, handling)
    }

    /// Only 32-bit accesses to the start of a register are defined; others are as offsets without a name.
    fn unless_odd(&self, offset: u32, width: u32, handling: Handling) -> Handling {
        match (offset & 0xf, width) {
            (0, 4) => handling,
            _ if self.around.knobs.unnamed_offsets_are_memory && handling != Handling::Fault => {
                Handling::Memory
            }
            _ => Handling::Fault,
        }
    }
}

fn nested_page_fault(address: u64, write: bool, present: bool) -> VmExit {
    let bit = |on, bit| if on { bit } else { 0 };
    let code_bits = fault_code::USER
        | fault_code::FINAL
        | bit(write, fault_code::WRITE)
        | bit(present, fault_code::PRESENT);
    VmExit::fault(code::NESTED_PAGE_FAULT, code_bits, address)
}

/// Reads bytes that may span two words of the page.
fn load_bytes(page: &Page<'_>, offset: u32, width: u32) -> u64 {
    let byte = |at: u32| u64::from(page.load_bytes((offset + at) & 0xfff, 1));
    match width {
        4 if offset.is_multiple_of(4) => page.load(offset).into(),
        _ => (0..width).rev().fold(0, |value, at| value << 8 | byte(at)),
    }
}

/// Writes bytes that may span two words of the page.
fn store_bytes(page: &Page<'_>, offset: u32, width: u32, value: u64) {
    if width == 4 && offset.is_multiple_of(4) {
        return page.store(offset, value as u32);
    }
    for at in 0..width {
        page.store_bytes((offset + at) & 0xfff, 1, (value >> (8 * at)) as u32 & 0xff);
    }
}
