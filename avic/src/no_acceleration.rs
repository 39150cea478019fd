//! Exit 402: an access to the page that AVIC does not accelerate.

use bit_field::BitField;
use vlapic_core::{Register, Vector};

/// What a VMCB says of exit 402, AVIC_NOACCEL (APM Vol. 2 15.29.9.2).
///
/// Whether the access has been done already says [`Handling`](crate::Handling).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAcceleration {
    /// Byte offset into the page, a multiple of 16. For an x2APIC MSR: its number less 800, times
    /// 16.
    pub offset: u16,
    /// A write, else a read.
    pub write: bool,
    /// For a write to EOI: the vector that was highest in service. Whether it has left ISR already
    /// the manual does not say clearly; clear its bit if it is set, and no other.
    pub ended: Option<Vector>,
}

impl NoAcceleration {
    /// The exit code, field 070 of the VMCB.
    pub const EXIT_CODE: u64 = 0x402;

    /// The meaning of EXITINFO1 (bit 32 write, bits 11:4 offset) and EXITINFO2 (vector in bits 7:0
    /// of a write to EOI, else undefined).
    #[inline]
    #[must_use]
    pub fn decode(exit_info_1: u64, exit_info_2: u64) -> Self {
        let offset = exit_info_1 as u16 & 0xff0;
        let write = exit_info_1.get_bit(32);
        let is_eoi = write && offset == Register::Eoi.offset();
        let ended = if is_eoi { Vector::new(exit_info_2 as u8) } else { None };
        Self { offset, write, ended }
    }

    /// The register at `offset`, or `None` where there is none.
    #[inline]
    #[must_use]
    pub fn register(&self) -> Option<Register> {
        Register::at(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_example() {
        let exit = NoAcceleration::decode(0x0000_0001_0000_00b0, 0x61);
        assert_eq!(exit.register(), Some(Register::Eoi));
        assert_eq!((exit.write, exit.ended), (true, Vector::new(0x61)));
    }

    #[test]
    fn undefined_and_reserved_bits_do_not_count() {
        let read = NoAcceleration::decode(!(1 << 32) & !0xff0 | 0xb0, 0x61);
        assert_eq!(read, NoAcceleration { offset: 0xb0, write: false, ended: None });
        let svr = NoAcceleration::decode(1 << 32 | 0xf0, 0x61);
        assert_eq!(svr.register(), Some(Register::Svr));
        assert_eq!(svr.ended, None);
        let eoi = NoAcceleration::decode(1 << 32 | 0xb0, 0xffff_ff0f);
        assert_eq!(eoi.ended, None, "no vector below 16 is in service");
    }

    #[test]
    fn an_offset_without_a_register() {
        assert_eq!(NoAcceleration::decode(0xff0, 0).register(), None);
    }
}
