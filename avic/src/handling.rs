//! How AVIC treats each access to the page.

use vlapic_core::{LvtEntry, Register};

/// What hardware does with a guest's access while AVIC is on (APM Vol. 2 Table 15-22). The same for
/// the page of xAVIC and the MSRs of x2AVIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Reads or writes the page and does nothing else.
    Allowed,
    /// Does what the register does, and exits only where it cannot: EOI of a level-triggered
    /// vector (402), ICR (401).
    Accelerated,
    /// Writes the page, then exits. RIP is past the instruction.
    Trap,
    /// Exits, the page untouched. RIP is at the instruction.
    Fault,
}

impl Handling {
    /// How a read of `register` is treated. `extended_lvt` is
    /// [`Capabilities::extended_lvt`](crate::Capabilities::extended_lvt).
    #[must_use]
    pub const fn of_read(register: Register, extended_lvt: bool) -> Self {
        match register {
            Register::Apr
            | Register::CurrentCount
            | Register::ExtendedFeature
            | Register::ExtendedControl
            | Register::SpecificEoi
            | Register::Ier(_) => Self::Fault,
            Register::ExtendedLvt(_) if !extended_lvt => Self::Fault,
            _ => Self::Allowed,
        }
    }

    /// How a write to `register` is treated; `extended_lvt` as for [`of_read`](Self::of_read).
    #[inline]
    #[must_use]
    pub const fn of_write(register: Register, extended_lvt: bool) -> Self {
        match register {
            Register::Tpr | Register::Eoi | Register::IcrLow | Register::SelfIpi => {
                Self::Accelerated
            }
            // CMCI is a register of Intel's: to AVIC its slot is memory like any other.
            Register::IcrHigh | Register::Lvt(LvtEntry::Cmci) => Self::Allowed,
            Register::Id
            | Register::RemoteRead
            | Register::Ldr
            | Register::Dfr
            | Register::Svr
            | Register::Esr
            | Register::Lvt(_)
            | Register::InitialCount
            | Register::DivideConfiguration => Self::Trap,
            Register::ExtendedLvt(_) if extended_lvt => Self::Trap,
            _ => Self::Fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Handling::{Accelerated, Allowed, Fault, Trap};
    use super::*;

    /// The table of the manual: first and last offset, read, write.
    const TABLE: &[(u16, u16, Handling, Handling)] = &[
        (0x020, 0x020, Allowed, Trap),
        (0x030, 0x030, Allowed, Fault),
        (0x080, 0x080, Allowed, Accelerated),
        (0x090, 0x090, Fault, Fault),
        (0x0a0, 0x0a0, Allowed, Fault),
        (0x0b0, 0x0b0, Allowed, Accelerated),
        (0x0c0, 0x0f0, Allowed, Trap),
        (0x100, 0x270, Allowed, Fault),
        (0x280, 0x280, Allowed, Trap),
        (0x2f0, 0x2f0, Allowed, Allowed),
        (0x300, 0x300, Allowed, Accelerated),
        (0x310, 0x310, Allowed, Allowed),
        (0x320, 0x370, Allowed, Trap),
        (0x380, 0x380, Allowed, Trap),
        (0x390, 0x390, Fault, Fault),
        (0x3e0, 0x3e0, Allowed, Trap),
        (0x400, 0x420, Fault, Fault),
        (0x480, 0x4f0, Fault, Fault),
    ];

    #[test]
    fn every_row_of_the_table() {
        for &(first, last, read, write) in TABLE {
            for offset in (first..=last).step_by(16) {
                let register = Register::at(offset).unwrap();
                for extended_lvt in [false, true] {
                    assert_eq!(Handling::of_read(register, extended_lvt), read, "{offset:#x}");
                    assert_eq!(Handling::of_write(register, extended_lvt), write, "{offset:#x}");
                }
            }
        }
    }

    #[test]
    fn extended_lvt_entries_follow_their_capability() {
        for offset in (0x500..=0x530).step_by(16) {
            let register = Register::at(offset).unwrap();
            assert_eq!(Handling::of_read(register, false), Fault);
            assert_eq!(Handling::of_write(register, false), Fault);
            assert_eq!(Handling::of_read(register, true), Allowed);
            assert_eq!(Handling::of_write(register, true), Trap);
        }
    }

    #[test]
    fn self_ipi_is_accelerated() {
        assert_eq!(Handling::of_write(Register::SelfIpi, false), Accelerated);
    }
}
