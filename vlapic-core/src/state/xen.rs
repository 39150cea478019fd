//! Xen's HVM records LAPIC (type 5) and LAPIC_REGS (type 6).
//!
//! LAPIC, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | IA32_APIC_BASE |
//! | 8 | 4 | "disabled": bit 0 EN clear, bit 1 SVR bit 8 clear |
//! | 12 | 4 | the divisor that the divide configuration selects, 1 to 128 |
//! | 16 | 8 | IA32_TSC_DEADLINE; not in records of 16 bytes |
//! | 24 | 4 | errors not yet in ESR; only in records of 32 bytes |
//! | 28 | 4 | padding |
//!
//! LAPIC_REGS: 1024 bytes, each register at its page offset, ICR's high half at 310 in every mode. PPR
//! is stale and 390 means nothing.

use super::REGISTERS_LENGTH;
use super::bytes::{store, u32_at, u64_at};
use super::correction::{Correction, Corrections};
use super::error::ImportError;
use super::foreign::write_registers;
use super::image::Image;
use super::outside::Outside;
use super::xen_records::XenRecords;
use crate::base::{ApicBase, Mode};
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::register::Register;
use crate::svr::Svr;
use crate::timer::divide_shift;

/// The record LAPIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenLapic {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Bit 0: EN is clear. Bit 1: SVR bit 8 is clear. An import does not believe it.
    pub disabled: u32,
    /// The divisor that the divide configuration selects. An import does not believe it.
    pub timer_divisor: u32,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// Errors not yet in ESR.
    pub pending_errors: u32,
}

impl XenLapic {
    /// The length of the record, in bytes.
    pub const LENGTH: usize = 32;

    /// The length of the record as releases before 4.21 know it, in bytes: errors not yet in ESR are
    /// lost. They refuse a longer one.
    pub const OLD_LENGTH: usize = 24;

    /// The record in full; its first [`OLD_LENGTH`](Self::OLD_LENGTH) bytes are the older one.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        store(&mut bytes, 0, &self.apic_base.to_le_bytes());
        store(&mut bytes, 8, &self.disabled.to_le_bytes());
        store(&mut bytes, 12, &self.timer_divisor.to_le_bytes());
        store(&mut bytes, 16, &self.tsc_deadline.to_le_bytes());
        store(&mut bytes, 24, &self.pending_errors.to_le_bytes());
        bytes
    }

    /// The record in `bytes`; what an older one lacks is zero.
    ///
    /// # Errors
    /// [`ImportError::Length`] unless they are 16, 24 or 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImportError> {
        if !matches!(bytes.len(), 16 | Self::OLD_LENGTH | Self::LENGTH) {
            return Err(ImportError::Length(bytes.len()));
        }
        Ok(Self {
            apic_base: u64_at(bytes, 0),
            disabled: u32_at(bytes, 8),
            timer_divisor: u32_at(bytes, 12),
            tsc_deadline: u64_at(bytes, 16),
            pending_errors: u32_at(bytes, 24),
        })
    }
}

impl<I: Inbox> LocalApic<'_, I> {
    /// The state at `now` (guest TSC) as Xen has it: see [`state`](crate::state) for when to call it and
    /// for what the format cannot hold. Everything posted is in IRR, whatever the descriptor's ON says.
    pub fn export_xen(
        &mut self,
        now: u64,
        registers: &mut [u8; REGISTERS_LENGTH],
    ) -> (XenLapic, Outside) {
        let image = self.capture(now);
        write_registers(&image.registers, registers);
        let lapic = XenLapic {
            apic_base: image.base.bits(),
            disabled: image.disabled_word(),
            timer_divisor: image.divisor(),
            tsc_deadline: image.deadline,
            pending_errors: image.errors,
        };
        (lapic, Self::outside(&image))
    }

    /// Becomes what Xen's records say, at `now` (guest TSC): see [`state`](crate::state) for when to call
    /// it and what has to follow. A periodic count starts anew; a one-shot count by
    /// [`Outside::one_shot`].
    ///
    /// # Errors
    /// [`ImportError`]; nothing has changed.
    pub fn import_xen(
        &mut self,
        now: u64,
        records: &XenRecords<'_>,
        outside: &Outside,
    ) -> Result<Corrections, ImportError> {
        let lapic = XenLapic::from_bytes(records.lapic)?;
        let mut image = Image::of_records(
            lapic.apic_base,
            records.registers,
            lapic.tsc_deadline,
            lapic.pending_errors,
            outside,
        )?;
        if image.registers.illegal_vectors() {
            return Err(ImportError::IllegalVector);
        }
        image.check_id(self.slot.x2apic_id(), self.slot.profile().xapic_id_writable())?;
        let mut corrections = image.complete(self, now, None, outside)?;
        let (disabled, divisor) = (image.disabled_word(), image.divisor());
        corrections.insert_if(Correction::DisabledWord, lapic.disabled != disabled);
        corrections.insert_if(Correction::DivisorWord, lapic.timer_divisor != divisor);
        let corrected = image.correct(self.slot.profile(), self.slot.x2apic_id());
        self.install(&image);
        Ok(corrections.union(corrected).without(Correction::Ppr))
    }
}

impl Image {
    fn disabled_word(&self) -> u32 {
        let svr = Svr::from_bits(self.registers.get(Register::Svr));
        let base: ApicBase = self.base;
        u32::from(!base.present()) | u32::from(!svr.software_enabled()) << 1
    }

    fn divisor(&self) -> u32 {
        1 << divide_shift(self.registers.get(Register::DivideConfiguration))
    }

    /// The record is of the vCPU that it is imported into.
    fn check_id(&self, expected: u32, writable: bool) -> Result<(), ImportError> {
        let found = self.registers.get(Register::Id);
        let right = match self.base.mode() {
            Mode::X2Apic => found == expected,
            Mode::XApic | Mode::Disabled => writable || found >> 24 == expected & 0xFF,
        };
        if right { Ok(()) } else { Err(ImportError::ApicId { found, expected }) }
    }
}
