//! RDMSR and WRMSR.

use crate::model::MsrLeak;

use super::access::{self, Handling};
use super::controls::Mode;
use super::exit::{Outcome, VmExit, code};
use super::guest::{Guest, Silicon};
use super::operation::Progress;
use super::page::offset;
use super::vmcb::intercept;

/// The MSRs that x2AVIC looks at.
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

const ICR: u32 = 0x830;
const SELF_IPI: u32 = 0x83f;

/// Bits of the ICR's low half that must be zero: 31:20, 17:16, 13:12.
const ICR_RESERVED: u64 = 0xfff3_3000;

/// The self-IPI register as a write of the ICR.
const SELF_SHORTHAND: u32 = 1 << 18;

impl Guest<'_> {
    /// RDMSR.
    pub(super) fn rdmsr(&mut self, silicon: &mut Silicon, msr: u32) -> Progress {
        if self.intercepts(msr, 0) {
            return Progress::exit(VmExit::fault(code::MSR, 0, 0));
        }
        if self.controls.mode != Mode::X2Avic || !X2APIC.contains(&msr) {
            silicon.leaks.push(MsrLeak { msr, written: None });
            return Progress::Done(Outcome::Value(0));
        }
        let checks = self.around.knobs.x2apic_checks_come_first;
        if msr == SELF_IPI || checks && !is_readable(msr) {
            return Progress::Done(Outcome::GeneralProtection);
        }
        let at = page_offset(msr);
        if access::read(at, self.around.capability, &self.around.knobs) == Handling::Fault {
            return self.unaccelerated(at, false);
        }
        let high = if msr == ICR { self.page.load(offset::ICR_HIGH) } else { 0 };
        Progress::Done(Outcome::Value(u64::from(high) << 32 | u64::from(self.page.load(at))))
    }

    /// WRMSR.
    pub(super) fn wrmsr(&mut self, silicon: &mut Silicon, msr: u32, value: u64) -> Progress {
        if self.intercepts(msr, 1) {
            return Progress::exit(VmExit::fault(code::MSR, 1, 0));
        }
        if self.controls.mode != Mode::X2Avic || !X2APIC.contains(&msr) {
            silicon.leaks.push(MsrLeak { msr, written: Some(value) });
            return Progress::DONE;
        }
        let checks = self.around.knobs.x2apic_checks_come_first;
        let refused = msr == ICR && value & ICR_RESERVED != 0
            || checks && reserved_bits(msr).is_none_or(|reserved| value & reserved != 0);
        if refused {
            return Progress::Done(Outcome::GeneralProtection);
        }
        let (at, low) = (page_offset(msr), value as u32);
        if msr == SELF_IPI {
            return self.write_self_ipi(SELF_SHORTHAND | low & 0xff);
        }
        match access::write(at, self.around.capability, &self.around.knobs) {
            Handling::Fault => self.unaccelerated(at, true),
            Handling::Memory => {
                self.page.store(at, low);
                Progress::DONE
            }
            Handling::Trap => {
                self.page.store(at, low);
                self.trap(at)
            }
            Handling::Accelerated => match at {
                offset::TPR => self.write_tpr(low),
                offset::EOI => self.write_eoi(low),
                _ => {
                    let high = (value >> 32) as u32;
                    self.page.store(offset::ICR_HIGH, high);
                    self.write_icr(low, high)
                }
            },
        }
    }

    /// Whether the MSR permission map makes the access exit: two bits an MSR, read then write, in blocks of 8192 MSRs.
    fn intercepts(&self, msr: u32, write: u64) -> bool {
        if self.controls.intercepts_3 & intercept::MSR_PROT == 0 {
            return false;
        }
        let block = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 0x800,
            0xc001_0000..=0xc001_1fff => 0x1000,
            _ => return true,
        };
        let bit = u64::from(msr & 0x1fff) * 2 + write;
        let byte = self.controls.msrpm + block + bit / 8;
        self.around.memory.load32(byte & !3) >> (bit % 32) & 1 != 0
    }
}

/// The page offset of an x2APIC MSR.
fn page_offset(msr: u32) -> u32 {
    (msr & 0xff) << 4
}

/// Whether an x2APIC register exists and can be read.
fn is_readable(msr: u32) -> bool {
    let only_written = matches!(msr, 0x80b | SELF_IPI);
    let only_read = matches!(msr, 0x802 | 0x803 | 0x809 | 0x80a | 0x80d | 0x810..=0x827 | 0x839);
    !only_written && (only_read || reserved_bits(msr).is_some())
}

/// The bits that must be zero in a write of an x2APIC register; `None` if it cannot be written.
fn reserved_bits(msr: u32) -> Option<u64> {
    let low = match msr {
        0x808 | SELF_IPI => 0xffff_ff00,
        0x80b | 0x828 => 0xffff_ffff,
        0x80f => 0xffff_fc00,
        ICR => return Some(ICR_RESERVED),
        0x832 => 0xfffc_ef00,
        0x833 | 0x834 | 0x837 | 0x850..=0x853 => 0xfffe_e800,
        0x835 | 0x836 => 0xfffe_2800,
        0x83e => 0xffff_fff4,
        0x838 | 0x848..=0x84f => 0,
        0x841 => 0xffff_fff8,
        0x842 => 0xffff_ff00,
        _ => return None,
    };
    Some(0xffff_ffff_0000_0000 | low)
}
