//! RDMSR and WRMSR.

use super::exit::{ExitReason, Outcome, VmExit};
use super::guest::Guest;
use super::mmio::{is_self_ipi, is_simple_ipi};
use super::page::offset;
use super::physical::PhysicalApic;

/// The MSRs that "virtualize x2APIC mode" looks at.
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// Bits of the ICR that WRMSR 830 refuses.
const ICR_RESERVED: u32 = 0xfff3_2000;

/// Bits of the spurious-interrupt register that WRMSR 80F refuses, where a processor virtualizes it.
const SVR_RESERVED: u32 = 0xffff_ec00;

impl Guest<'_> {
    /// RDMSR.
    pub(super) fn rdmsr(&mut self, physical: &mut PhysicalApic, msr: u32) -> Outcome {
        if self.intercepts(msr, Direction::Read) {
            return Outcome::Exit(VmExit::fault(ExitReason::Rdmsr, 0));
        }
        let virtualized = self.controls.virtualize_x2apic
            && X2APIC.contains(&msr)
            && (msr == 0x808 || self.controls.apic_register_virtualization);
        if virtualized {
            return Outcome::Value(self.page.load_msr(page_offset(msr)));
        }
        physical.read(msr).map_or(Outcome::GeneralProtection, Outcome::Value)
    }

    /// WRMSR.
    pub(super) fn wrmsr(&mut self, physical: &mut PhysicalApic, msr: u32, value: u64) -> Outcome {
        if self.intercepts(msr, Direction::Write) {
            return Outcome::Exit(VmExit::fault(ExitReason::Wrmsr, 0));
        }
        let delivery = self.controls.virtual_interrupt_delivery;
        let future_svr =
            self.knobs.svr_writes_never_exit && self.controls.apic_register_virtualization;
        let refused = match msr {
            _ if !self.controls.virtualize_x2apic => None,
            0x808 => Some(value >> 8 != 0),
            0x80b if delivery => Some(value != 0),
            0x80f if future_svr => Some(value >> 32 != 0 || value as u32 & SVR_RESERVED != 0),
            0x830 if self.controls.ipi_virtualization => Some(value as u32 & ICR_RESERVED != 0),
            0x83f if delivery => Some(value >> 8 != 0),
            _ => None,
        };
        match refused {
            None => {
                physical.write(msr, value).map_or(Outcome::GeneralProtection, |()| Outcome::Done)
            }
            Some(true) => Outcome::GeneralProtection,
            Some(false) => {
                self.store_msr(msr, value);
                self.emulate_wrmsr(physical, msr, value).map_or(Outcome::Done, Outcome::Exit)
            }
        }
    }

    /// A virtualized WRMSR stores its value.
    fn store_msr(&mut self, msr: u32, value: u64) {
        let stores = self.knobs.delivery_stores_msrs;
        match msr {
            0x80b if !stores => self.page.store(offset::VEOI, 0),
            0x83f if !stores && value >> 4 != 0 => {}
            _ => self.page.store_msr(page_offset(msr), value),
        }
    }

    /// What follows a virtualized WRMSR whose value is already in the page.
    fn emulate_wrmsr(&mut self, physical: &PhysicalApic, msr: u32, value: u64) -> Option<VmExit> {
        let (command, vector) = (value as u32, value as u8);
        let exit = match msr {
            0x808 => return self.tpr_virtualization(),
            0x80b => return self.eoi_virtualization(),
            0x80f => return None,
            0x830
                if self.knobs.ipiv_sends_self_by_msr
                    && self.controls.virtual_interrupt_delivery
                    && is_self_ipi(command) =>
            {
                self.self_ipi_virtualization(vector);
                return None;
            }
            0x830 if is_simple_ipi(command, false) => {
                return self.ipi_virtualization(physical, vector, (value >> 32) as u32);
            }
            0x83f if vector >> 4 != 0 => {
                self.self_ipi_virtualization(vector);
                return None;
            }
            _ => VmExit::apic_write(page_offset(msr)),
        };
        // Seen on processors, and a trap for drivers that add it: RIP is already after the instruction.
        Some(VmExit { instruction_length: 2, ..exit })
    }

    /// Whether the MSR bitmap, or its absence, makes the access exit.
    fn intercepts(&self, msr: u32, direction: Direction) -> bool {
        let half = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 0x400,
            _ => return true,
        };
        if !self.controls.msr_bitmaps {
            return true;
        }
        let bit = msr & 0x1fff;
        let byte = self.controls.msr_bitmap_address + half + direction as u64 + u64::from(bit / 8);
        self.memory.load32(byte & !3) >> (bit % 32) & 1 != 0
    }
}

/// Which part of the MSR bitmap is asked, as a byte offset.
#[derive(Clone, Copy)]
enum Direction {
    Read = 0,
    Write = 0x800,
}

/// The page offset of an x2APIC MSR.
fn page_offset(msr: u32) -> u32 {
    (msr & 0xff) << 4
}
