//! Where the kernel is known to differ from the architecture, and why that is no defect of ours.
//!
//! A row says when it holds, what ours has to have done then, and what the kernel: both exactly. So a
//! row hides nothing but what it says.

mod explain;
mod message;
mod register;
#[cfg(test)]
mod tests;

pub(super) use explain::{Step, explain};
pub(super) use register::reserved;

/// One row of the table of known deviations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Deviation {
    /// The version number is the kernel's choice.
    Version,
    /// Reserved bits of x2APIC registers do not fault, but for the upper half and ICR's.
    ReservedBits,
    /// WRMSR of EOI takes any value.
    EoiValue,
    /// Vectors 0 to 15 reach IRR.
    LowVector,
    /// ESR stays zero: no errors are recorded, and none interrupts.
    NoErrors,
    /// LVT bits 12 and 14, which are read-only, are stored.
    LvtReadOnly,
    /// SVR bit 9, reserved since Pentium 4, is stored.
    FocusCheck,
    /// Reserved bits of xAPIC mode's ICR are stored.
    IcrReserved,
    /// The xAPIC ID can be rewritten, as in old parts; ours can be told to allow it.
    XApicIdWritable,
    /// What a load from a reserved or write-only place gives is not defined.
    ReservedRead,
    /// The current count follows the kernel's clock.
    CurrentCount,
    /// A masked deadline that passes is not cleared.
    MaskedDeadline,
    /// An APIC that is turned off keeps its registers.
    DisabledKeeps,
    /// ICR modes 1, 3 and 7 in x2APIC mode and 3, 6 of an MSI are reserved; the kernel delivers.
    ReservedDelivery,
    /// Shorthand self or all-including-self with anything but fixed is invalid; the kernel delivers.
    InvalidShorthand,
    /// ICR bits 14 and 15 have no effect since Pentium 4; in the kernel they make a level, or drop
    /// the message.
    IcrLevel,
    /// A level-triggered MSI without its assert bit interrupts.
    MsiDeassert,
    /// Lowest priority goes by the vector's number, not by priority.
    LowestPriority,
    /// Lowest priority with physical FF goes to everybody.
    LowestBroadcast,
    /// The redirection hint takes NMI, SMI and INIT from all but one.
    RedirectedEvent,
    /// A software-disabled APIC has no logical destination, so that not even an NMI reaches it.
    LogicalWhileDisabled,
    /// With all others in x2APIC mode, an APIC in xAPIC mode that is software-disabled or has no LDR is
    /// found by its physical ID where a logical one was meant.
    LogicalById,
    /// Of several APICs with one xAPIC ID only one gets the message.
    AliasedId,
    /// An ID above 255 does not reach an xAPIC-mode APIC by its low byte.
    WideToXApic,
    /// A broadcast IPI reaches only APICs in the sender's mode.
    MixedBroadcast,
    /// The upper part of a 32-bit logical destination is not looked at by xAPIC-mode APICs, and FF is
    /// their broadcast.
    WideLogicalToXApic,
    /// A DFR that is neither flat nor cluster is taken for cluster.
    OddFormat,
    /// With user space's I/O APIC, EOIs of edges are broadcast too.
    EoiOfEdge,
    /// Kernels can be built without system-management mode; SMIs are then dropped.
    NoSmm,
    /// A held NMI or SMI is dropped by another INIT.
    HeldEventLost,
}

impl Deviation {
    /// Every row.
    pub const ALL: [Self; 30] = [
        Self::Version,
        Self::ReservedBits,
        Self::EoiValue,
        Self::LowVector,
        Self::NoErrors,
        Self::LvtReadOnly,
        Self::FocusCheck,
        Self::IcrReserved,
        Self::XApicIdWritable,
        Self::ReservedRead,
        Self::CurrentCount,
        Self::MaskedDeadline,
        Self::DisabledKeeps,
        Self::ReservedDelivery,
        Self::InvalidShorthand,
        Self::IcrLevel,
        Self::MsiDeassert,
        Self::LowestPriority,
        Self::LowestBroadcast,
        Self::RedirectedEvent,
        Self::LogicalWhileDisabled,
        Self::LogicalById,
        Self::AliasedId,
        Self::WideToXApic,
        Self::MixedBroadcast,
        Self::WideLogicalToXApic,
        Self::OddFormat,
        Self::EoiOfEdge,
        Self::NoSmm,
        Self::HeldEventLost,
    ];

    /// Why the row is there.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Version => "SDM 10.4.8: the version number is each implementation's own",
            Self::ReservedBits => "SDM Table 10-6: reserved bits fault; KVM masks them",
            Self::EoiValue => "SDM Table 10-6: EOI takes zero only; KVM takes any value",
            Self::LowVector => "SDM 10.5.2: vectors 0-15 are illegal; KVM sets IRR",
            Self::NoErrors => "SDM 10.5.3: errors are recorded; KVM records none",
            Self::LvtReadOnly => "SDM 10.5.1: bits 12 and 14 are read-only; KVM stores them",
            Self::FocusCheck => "SDM 10.9: SVR bit 9 is reserved; KVM stores it",
            Self::IcrReserved => "SDM 10.6.1: reserved bits read as zero; KVM stores them",
            Self::XApicIdWritable => "SDM 10.4.6: read-only in recent parts; writable in KVM",
            Self::ReservedRead => "SDM 10.4.1: what such a load gives is not defined",
            Self::CurrentCount => "SDM 10.5.4: each has its own clock; both run or both stand",
            Self::MaskedDeadline => "SDM 10.5.4.1 is silent; KVM clears it once it can interrupt",
            Self::DisabledKeeps => "SDM 10.4.3: registers may be lost; KVM keeps them",
            Self::ReservedDelivery => "SDM 10.12.9, 10.11.2: reserved modes; KVM delivers some",
            Self::InvalidShorthand => "SDM Table 10-3: invalid combination; KVM delivers it",
            Self::IcrLevel => "SDM 10.6.1: bits 14 and 15 have no effect; in KVM they have",
            Self::MsiDeassert => "SDM 10.11.2: a de-assertion; KVM takes it for an interrupt",
            Self::LowestPriority => {
                "SDM 10.6.2.4: lowest priority; KVM takes vector modulo targets"
            }
            Self::LowestBroadcast => "SDM 10.6.2.4: one target; KVM delivers to all",
            Self::RedirectedEvent => "SDM 10.11.1: the hint is for vectors; KVM picks one always",
            Self::LogicalWhileDisabled => {
                "SDM 10.4.7.2: NMI, SMI, INIT, SIPI are accepted; KVM's logical map lacks the APIC"
            }
            Self::LogicalById => "SDM 10.6.2.2: LDR decides; KVM's map has the physical ID",
            Self::AliasedId => "SDM 10.6.2.1: each APIC compares; KVM's map has one a number",
            Self::WideToXApic => "KVM's own comment: hardware compares 8 bits; KVM does not",
            Self::MixedBroadcast => "SDM is silent on mixed modes; KVM keeps them apart",
            Self::WideLogicalToXApic => "SDM 10.12.10: the cluster counts; KVM drops it",
            Self::OddFormat => "SDM 10.6.2.2: two models only; KVM's map knows no third",
            Self::EoiOfEdge => "SDM 10.8.5: TMR decides; KVM tells user space of all",
            Self::NoSmm => "SDM 10.4.7.2: SMIs are accepted; this kernel was built without SMM",
            Self::HeldEventLost => "APM Vol. 2 16.10: NMI and SMI are held; KVM drops them",
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

    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// Every row with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Deviation, u64)> + '_ {
        Deviation::ALL.into_iter().map(|row| (row, self.0[row as usize]))
    }
}
