//! Where the kernel is known to differ from the architecture, and why that is no defect of ours.

use vlapic_core::{Profile, Register, reserved_in_x2apic};

use super::compare::Difference;
use super::operation::Operation;

/// One row of the table of known deviations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deviation {
    /// The version register and the number of entries are the kernel's choice.
    Version,
    /// Reserved bits of x2APIC registers do not fault, but for the upper half and ICR's.
    ReservedBits,
    /// WRMSR of EOI takes any value.
    EoiValue,
    /// Vectors 0 to 15 reach IRR.
    LowVector,
    /// ESR stays zero: no errors are recorded.
    NoErrors,
    /// LVT bits 12 and 14, which are read-only, are stored.
    LvtReadOnly,
    /// SVR bit 9, reserved since Pentium 4, is stored.
    FocusCheck,
    /// ICR modes 1, 3 and 7 are reserved in x2APIC mode; the kernel delivers some of them.
    ReservedDelivery,
    /// Shorthand self or all-including-self with anything but fixed is invalid; the kernel delivers.
    InvalidShorthand,
    /// ICR bits 14 and 15 have no effect since Pentium 4; in the kernel they make a level, or drop
    /// the message.
    IcrLevel,
    /// Lowest priority goes by the vector's number, not by priority.
    LowestPriorityChoice,
    /// The current count follows the kernel's clock.
    CurrentCount,
    /// A software-disabled APIC has no logical destination, so that not even an NMI reaches it.
    LogicalWhileDisabled,
}

impl Deviation {
    /// Every row.
    pub const ALL: [Self; 13] = [
        Self::Version,
        Self::ReservedBits,
        Self::EoiValue,
        Self::LowVector,
        Self::NoErrors,
        Self::LvtReadOnly,
        Self::FocusCheck,
        Self::ReservedDelivery,
        Self::InvalidShorthand,
        Self::IcrLevel,
        Self::LowestPriorityChoice,
        Self::CurrentCount,
        Self::LogicalWhileDisabled,
    ];

    /// Why the row is there.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Version => "version and LVT count are each implementation's own",
            Self::ReservedBits => "SDM Table 10-6: reserved bits fault; KVM masks them",
            Self::EoiValue => "SDM Table 10-6: EOI takes zero only; KVM takes any value",
            Self::LowVector => "SDM 10.5.2: vectors 0-15 are illegal; KVM sets IRR",
            Self::NoErrors => "SDM 10.5.3: errors are recorded; KVM records none",
            Self::LvtReadOnly => "SDM 10.5.1: bits 12 and 14 are read-only; KVM stores them",
            Self::FocusCheck => "SDM 10.9: SVR bit 9 is reserved; KVM stores it",
            Self::ReservedDelivery => "SDM 10.12.9: modes 1, 3, 7 are reserved; KVM delivers some",
            Self::InvalidShorthand => "SDM Table 10-3: invalid combination; KVM delivers it",
            Self::IcrLevel => "SDM 10.6.1: bits 14 and 15 have no effect; in KVM they have",
            Self::LowestPriorityChoice => {
                "SDM 10.6.2.4: lowest priority; KVM takes vector modulo targets"
            }
            Self::CurrentCount => "time differs",
            Self::LogicalWhileDisabled => {
                "SDM 10.4.7.2: NMIs are accepted; KVM's logical map leaves the APIC out"
            }
        }
    }

    /// The row that explains `difference` after `operation`, if there is one.
    pub(super) fn explaining(operation: &Operation, difference: &Difference) -> Option<Self> {
        Self::of_operation(operation, difference).or_else(|| Self::of_register(difference))
    }

    fn of_operation(operation: &Operation, difference: &Difference) -> Option<Self> {
        match *operation {
            Operation::Write { msr, value, .. } => {
                let register = Register::from_msr(msr)?;
                let profile = Profile::intel().with_cmci(false).with_eoi_suppression(false);
                if value & reserved_in_x2apic(register, &profile) != 0 {
                    return Some(if register == Register::Eoi {
                        Self::EoiValue
                    } else {
                        Self::ReservedBits
                    });
                }
                match register {
                    Register::IcrLow => Self::of_icr(value as u32, difference),
                    Register::SelfIpi if value < 16 => Some(Self::LowVector),
                    _ => None,
                }
            }
            Operation::Read { msr, .. } => match Register::from_msr(msr)? {
                Register::CurrentCount => Some(Self::CurrentCount),
                Register::Version => Some(Self::Version),
                Register::Esr => Some(Self::NoErrors),
                _ => None,
            },
            Operation::Msi { address, data } => {
                if data & 0xFF < 16 {
                    return Some(Self::LowVector);
                }
                let lowest = data >> 8 & 7 == 1 || address & 8 != 0;
                lowest.then_some(Self::LowestPriorityChoice)
            }
            Operation::Take { .. } => None,
        }
    }

    fn of_icr(icr: u32, difference: &Difference) -> Option<Self> {
        let mode = icr >> 8 & 7;
        if icr & 1 << 11 != 0 && matches!(difference, Difference::Nmi { ours: true, .. }) {
            return Some(Self::LogicalWhileDisabled);
        }
        if matches!(mode, 1 | 3 | 7) {
            return Some(Self::ReservedDelivery);
        }
        if mode != 0 && matches!(icr >> 18 & 3, 1 | 2) {
            return Some(Self::InvalidShorthand);
        }
        if icr & 1 << 15 != 0 {
            return Some(Self::IcrLevel);
        }
        (mode == 0 && icr & 0xFF < 16).then_some(Self::LowVector)
    }

    fn of_register(difference: &Difference) -> Option<Self> {
        let Difference::Register { offset, ours, kernel, .. } = *difference else {
            return None;
        };
        let bits = ours ^ kernel;
        match Register::at(offset)? {
            Register::Version => Some(Self::Version),
            Register::Esr => Some(Self::NoErrors),
            Register::Lvt(_) if bits & !0x5000 == 0 => Some(Self::LvtReadOnly),
            Register::Svr if bits & !0x200 == 0 => Some(Self::FocusCheck),
            _ => None,
        }
    }
}

/// How often each row was used.
#[derive(Clone, Debug, Default)]
pub struct Deviations([u64; Deviation::ALL.len()]);

impl Deviations {
    pub(super) fn count(&mut self, deviation: Deviation) {
        self.0[deviation as usize] += 1;
    }

    /// Every row with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Deviation, u64)> + '_ {
        Deviation::ALL.into_iter().map(|row| (row, self.0[row as usize]))
    }
}
