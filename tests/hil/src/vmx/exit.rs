//! What a VM exit says.

use x86::vmx::vmcs::ro;

use super::VmxError;
use super::vmcs::Fields;

/// One VM exit, read from the VMCS (SDM Vol. 3C 25.9 and 28.2).
///
/// Which fields have a meaning depends on the reason; the others are whatever the processor left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Why.
    pub(crate) reason: Reason,
    /// Exit qualification.
    pub(crate) qualification: u64,
    /// Bytes of the instruction that caused the exit.
    pub(crate) instruction_length: u32,
    /// The event that caused the exit: exception, NMI, or an acknowledged external interrupt.
    pub(crate) interruption: EventInfo,
    /// The event during whose delivery the exit happened. It has not been delivered.
    pub(crate) idt_vectoring: EventInfo,
    /// Guest-linear address.
    pub(crate) guest_linear: u64,
    /// Guest-physical address, of EPT violations.
    pub(crate) guest_physical: u64,
}

impl Exit {
    /// Reads the current VMCS. An entry that failed half-way also ends here, as an error.
    pub(super) fn read(fields: &Fields) -> Result<Self, VmxError> {
        const ENTRY_FAILURE: u64 = 1 << 31;
        let reason = fields.get(ro::EXIT_REASON)?;
        let qualification = fields.get(ro::EXIT_QUALIFICATION)?;
        if reason & ENTRY_FAILURE != 0 {
            return Err(VmxError::EntryFailed { reason: reason as u16, qualification });
        }
        Ok(Self {
            reason: Reason::from(reason as u16),
            qualification,
            instruction_length: fields.get(ro::VMEXIT_INSTRUCTION_LEN)? as u32,
            interruption: EventInfo::read(
                fields,
                ro::VMEXIT_INTERRUPTION_INFO,
                ro::VMEXIT_INTERRUPTION_ERR_CODE,
            )?,
            idt_vectoring: EventInfo::read(
                fields,
                ro::IDT_VECTORING_INFO,
                ro::IDT_VECTORING_ERR_CODE,
            )?,
            guest_linear: fields.get(ro::GUEST_LINEAR_ADDR)?,
            guest_physical: fields.get(ro::GUEST_PHYSICAL_ADDR_FULL)?,
        })
    }

    /// The vector that the processor took from the physical APIC, of an external-interrupt exit.
    pub(crate) fn acknowledged_vector(&self) -> Option<u8> {
        (self.reason == Reason::ExternalInterrupt && self.interruption.is_valid())
            .then(|| self.interruption.vector())
    }

    /// Of EPT violations: the access was a data write.
    pub(crate) fn is_write(&self) -> bool {
        self.qualification & 1 << 1 != 0
    }
}

/// Interruption information or IDT-vectoring information: the raw word and its error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventInfo {
    /// The word as in the VMCS.
    pub(crate) word: u32,
    /// Means something if [`has_error_code`](Self::has_error_code).
    pub(crate) error_code: u32,
}

impl EventInfo {
    fn read(fields: &Fields, word: u32, error_code: u32) -> Result<Self, VmxError> {
        Ok(Self { word: fields.get(word)? as u32, error_code: fields.get(error_code)? as u32 })
    }

    /// There is an event at all.
    pub(crate) fn is_valid(self) -> bool {
        self.word & 1 << 31 != 0
    }

    /// Bits 7:0.
    pub(crate) fn vector(self) -> u8 {
        self.word as u8
    }

    /// Bits 10:8: 0 external interrupt, 2 NMI, 3 hardware exception, 4 software interrupt, 5 privileged software
    /// exception, 6 software exception.
    pub(crate) fn kind(self) -> u8 {
        (self.word >> 8 & 7) as u8
    }

    /// Bit 11.
    pub(crate) fn has_error_code(self) -> bool {
        self.word & 1 << 11 != 0
    }
}

/// The basic exit reason (SDM Vol. 3D appendix C), as far as this hypervisor tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Reason {
    ExceptionOrNmi,
    ExternalInterrupt,
    TripleFault,
    InitSignal,
    StartupIpi,
    InterruptWindow,
    NmiWindow,
    Cpuid,
    Hlt,
    Vmcall,
    ControlRegister,
    Rdmsr,
    Wrmsr,
    TprBelowThreshold,
    ApicAccess,
    VirtualizedEoi,
    EptViolation,
    EptMisconfiguration,
    PreemptionTimer,
    ApicWrite,
    /// Any other, by its number.
    Other(u16),
}

impl Reason {
    const KNOWN: [(u16, Self); 20] = [
        (0, Self::ExceptionOrNmi),
        (1, Self::ExternalInterrupt),
        (2, Self::TripleFault),
        (3, Self::InitSignal),
        (4, Self::StartupIpi),
        (7, Self::InterruptWindow),
        (8, Self::NmiWindow),
        (10, Self::Cpuid),
        (12, Self::Hlt),
        (18, Self::Vmcall),
        (28, Self::ControlRegister),
        (31, Self::Rdmsr),
        (32, Self::Wrmsr),
        (43, Self::TprBelowThreshold),
        (44, Self::ApicAccess),
        (45, Self::VirtualizedEoi),
        (48, Self::EptViolation),
        (49, Self::EptMisconfiguration),
        (52, Self::PreemptionTimer),
        (56, Self::ApicWrite),
    ];

    /// The number in the VMCS.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Other(number) => number,
            _ => Self::KNOWN.iter().find(|known| known.1 == self).map_or(u16::MAX, |known| known.0),
        }
    }
}

impl From<u16> for Reason {
    fn from(number: u16) -> Self {
        Self::KNOWN
            .iter()
            .find(|known| known.0 == number)
            .map_or(Self::Other(number), |known| known.1)
    }
}
