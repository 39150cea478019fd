//! VM exits and the other results of a guest operation.

/// What came of one guest operation or one instruction boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// A read completed with this value.
    Value(u64),
    /// The operation completed and had no value to give.
    Done,
    /// The operation raised #GP(0) in the guest.
    GeneralProtection,
    /// At this instruction boundary an interrupt with this vector was delivered through the guest's IDT.
    Delivered(u8),
    /// Posted-interrupt processing took place; no VM exit.
    Posted,
    /// Nothing happened: no event at this boundary, or the physical interrupt stays pending.
    Nothing,
    /// The guest was left. Exit information is in the VMCS as well.
    Exit(VmExit),
}

impl Outcome {
    /// The VM exit, if there was one.
    pub fn exit(self) -> Option<VmExit> {
        match self {
            Outcome::Exit(exit) => Some(exit),
            _ => None,
        }
    }

    /// Reason and qualification of the VM exit, if there was one.
    pub fn reason(self) -> Option<(ExitReason, u64)> {
        self.exit().map(|exit| (exit.reason, exit.qualification))
    }
}

/// A VM exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmExit {
    /// Basic exit reason.
    pub reason: ExitReason,
    /// Exit qualification.
    pub qualification: u64,
    /// Whether the operation completed: guest RIP is after it, and its write is in the page. Otherwise RIP is at the
    /// operation and it did nothing.
    pub trap_like: bool,
    /// VM-exit interruption information.
    pub interruption_info: u32,
    /// What the VM-exit instruction length field holds; only defined for some reasons.
    pub instruction_length: u32,
}

impl VmExit {
    /// A fault-like exit: the operation did nothing.
    pub(super) fn fault(reason: ExitReason, qualification: u64) -> Self {
        let instruction_length = match reason {
            ExitReason::Hlt => 1,
            ExitReason::Cpuid | ExitReason::Rdmsr | ExitReason::Wrmsr => 2,
            ExitReason::Vmcall => 3,
            ExitReason::CrAccess => 4,
            _ => 0,
        };
        VmExit { reason, qualification, trap_like: false, interruption_info: 0, instruction_length }
    }

    /// A trap-like exit: the operation completed first.
    pub(super) fn trap(reason: ExitReason, qualification: u64) -> Self {
        VmExit {
            reason,
            qualification,
            trap_like: true,
            interruption_info: 0,
            instruction_length: 0,
        }
    }

    /// An APIC-write exit for a page offset.
    pub(super) fn apic_write(offset: u32) -> Self {
        Self::trap(ExitReason::ApicWrite, offset.into())
    }

    /// The exit-reason field's value.
    pub fn reason_field(&self) -> u64 {
        self.reason as u64
    }
}

/// Basic exit reasons, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum ExitReason {
    Nmi = 0,
    ExternalInterrupt = 1,
    InterruptWindow = 7,
    Cpuid = 10,
    Hlt = 12,
    Vmcall = 18,
    CrAccess = 28,
    Rdmsr = 31,
    Wrmsr = 32,
    TprBelowThreshold = 43,
    ApicAccess = 44,
    VirtualizedEoi = 45,
    EptViolation = 48,
    PreemptionTimer = 52,
    ApicWrite = 56,
}
