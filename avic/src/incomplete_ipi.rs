//! Exit 401: AVIC could not complete an IPI.

use bit_field::BitField;
use vlapic_core::Icr;

/// What a VMCB says of exit 401, AVIC_INCOMPLETE_IPI (APM Vol. 2 15.29.9.1).
///
/// The exit is trap-like: RIP is past the instruction and the page holds the value written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncompleteIpi {
    /// The ICR as written. Bit 12 may be set although the write is over.
    pub icr: Icr,
    /// What went wrong.
    pub cause: IncompleteCause,
}

/// Why AVIC did not complete an IPI. Indices are those of the physical APIC ID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IncompleteCause {
    /// 0: level-triggered, or a delivery mode or destination that AVIC does not do.
    InvalidType,
    /// 1: a target is not running. IRR is set in every target already: wake them, and send nothing
    /// again.
    TargetNotRunning {
        /// The entry of a target that was not running; which, if there are several, is not said.
        index: u16,
    },
    /// 2: no valid entry for a target.
    InvalidTarget {
        /// The entry.
        index: u16,
    },
    /// 3: the backing page of a target cannot be addressed.
    InvalidBackingPage {
        /// The entry.
        index: u16,
    },
    /// 4: the vector is below 16.
    InvalidVector,
    /// 5: not accelerated: a shorthand other than self under Secure AVIC.
    NotAccelerated,
    /// An identifier that this crate does not know.
    Unknown(u32),
}

impl IncompleteIpi {
    /// The exit code, field 070 of the VMCB.
    pub const EXIT_CODE: u64 = 0x401;

    /// EXITINFO2 bits 63:32 of [`IncompleteCause::TargetNotRunning`].
    pub(crate) const TARGET_NOT_RUNNING: u64 = 1;

    /// The meaning of EXITINFO1 (ICR, high half above low half) and EXITINFO2 (identifier in bits
    /// 63:32, index in bits 11:0).
    #[inline]
    #[must_use]
    pub fn decode(exit_info_1: u64, exit_info_2: u64) -> Self {
        let index = exit_info_2.get_bits(0..12) as u16;
        let cause = match exit_info_2.get_bits(32..64) as u32 {
            0 => IncompleteCause::InvalidType,
            1 => IncompleteCause::TargetNotRunning { index },
            2 => IncompleteCause::InvalidTarget { index },
            3 => IncompleteCause::InvalidBackingPage { index },
            4 => IncompleteCause::InvalidVector,
            5 => IncompleteCause::NotAccelerated,
            other => IncompleteCause::Unknown(other),
        };
        Self { icr: Icr::from_bits(exit_info_1), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Destination 7, vector 41, fixed, edge, physical, to a vCPU that does not run.
    #[test]
    fn worked_examples() {
        for (info, destination) in
            [(0x0700_0000_0000_0041, 0x0700_0000), (0x0000_0007_0000_0041, 7)]
        {
            let exit = IncompleteIpi::decode(info, 0x0000_0001_0000_0007);
            assert_eq!(exit.cause, IncompleteCause::TargetNotRunning { index: 7 });
            assert_eq!((exit.icr.vector(), exit.icr.high()), (0x41, destination));
            assert_eq!((exit.icr.delivery_mode(), exit.icr.logical()), (0, false));
        }
    }

    #[test]
    fn every_identifier() {
        let cause = |id: u64| IncompleteIpi::decode(0, id << 32 | 0xffff_ffff).cause;
        assert_eq!(cause(0), IncompleteCause::InvalidType);
        assert_eq!(cause(1), IncompleteCause::TargetNotRunning { index: 0xfff });
        assert_eq!(cause(2), IncompleteCause::InvalidTarget { index: 0xfff });
        assert_eq!(cause(3), IncompleteCause::InvalidBackingPage { index: 0xfff });
        assert_eq!(cause(4), IncompleteCause::InvalidVector);
        assert_eq!(cause(5), IncompleteCause::NotAccelerated);
        assert_eq!(cause(6), IncompleteCause::Unknown(6));
        assert_eq!(cause(0xffff_ffff), IncompleteCause::Unknown(0xffff_ffff));
    }
}
