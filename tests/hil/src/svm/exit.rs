//! What a #VMEXIT says.

use super::SvmError;
use super::vmcb::Control;

/// One exit, read from the control block (APM Vol. 2 15.6, appendix C).
///
/// Which fields have a meaning depends on the reason; the others are whatever the processor left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Why.
    pub(crate) reason: Reason,
    /// EXITINFO1.
    pub(crate) info_1: u64,
    /// EXITINFO2.
    pub(crate) info_2: u64,
    /// The event during whose delivery the exit happened. It has not been delivered.
    pub(crate) interrupted: EventInfo,
    /// The instruction behind the one that exited; 0 where the processor does not say.
    pub(super) next_rip: u64,
}

impl Exit {
    /// Reads the control block. An entry that was refused also ends here, as an error.
    pub(super) fn read(control: &Control) -> Result<Self, SvmError> {
        let reason = Reason::from(control.exit_code);
        if reason == Reason::Invalid {
            return Err(SvmError::EntryRefused);
        }
        Ok(Self {
            reason,
            info_1: control.exit_info_1,
            info_2: control.exit_info_2,
            interrupted: EventInfo { word: control.exit_interrupt_info },
            next_rip: control.next_rip,
        })
    }

    /// From the words that the control block has for it.
    pub(crate) fn new(code: u64, info_1: u64, info_2: u64) -> Self {
        let interrupted = EventInfo { word: 0 };
        Self { reason: Reason::from(code), info_1, info_2, interrupted, next_rip: 0 }
    }

    /// Of nested page faults: the guest-physical address (APM Vol. 2 15.25.6).
    pub(crate) fn guest_physical(&self) -> u64 {
        self.info_2
    }

    /// Of nested page faults: a data write. Of MSR accesses: WRMSR.
    pub(crate) fn is_write(&self) -> bool {
        let bit = if self.reason == Reason::Msr { 0 } else { 1 };
        self.info_1 & 1 << bit != 0
    }
}

/// EXITINTINFO, whose layout EVENTINJ shares (APM Vol. 2 15.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventInfo {
    /// The word as in the control block.
    pub(crate) word: u64,
}

impl EventInfo {
    pub(super) const VALID: u64 = 1 << 31;

    /// There is an event at all.
    pub(crate) fn is_valid(self) -> bool {
        self.word & Self::VALID != 0
    }

    /// Bits 7:0.
    pub(crate) fn vector(self) -> u8 {
        self.word as u8
    }

    /// Bits 10:8: 0 interrupt, 2 NMI, 3 exception, 4 software interrupt.
    pub(crate) fn kind(self) -> u8 {
        (self.word >> 8 & 7) as u8
    }
}

/// The exit code, as far as this hypervisor tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Reason {
    ReadCr8,
    WriteCr8,
    /// VMEXIT_INTR.
    Interrupt,
    Nmi,
    Init,
    /// VMEXIT_VINTR: V_IRQ is about to be taken.
    VirtualInterrupt,
    Hlt,
    /// RDMSR or WRMSR.
    Msr,
    Shutdown,
    Vmmcall,
    /// HLT with nothing to take; known by the manual only.
    IdleHlt,
    NestedPageFault,
    /// VMEXIT_AVIC_INCOMPLETE_IPI.
    IncompleteIpi,
    /// VMEXIT_AVIC_NOACCEL.
    NoAcceleration,
    /// VMEXIT_INVALID: the guest never ran.
    Invalid,
    /// Any other, by its code.
    Other(u64),
}

impl Reason {
    const KNOWN: [(u64, Self); 14] = [
        (0x008, Self::ReadCr8),
        (0x018, Self::WriteCr8),
        (0x060, Self::Interrupt),
        (0x061, Self::Nmi),
        (0x063, Self::Init),
        (0x064, Self::VirtualInterrupt),
        (0x078, Self::Hlt),
        (0x07c, Self::Msr),
        (0x07f, Self::Shutdown),
        (0x081, Self::Vmmcall),
        (0x0a6, Self::IdleHlt),
        (0x400, Self::NestedPageFault),
        (0x401, Self::IncompleteIpi),
        (0x402, Self::NoAcceleration),
    ];

    /// The code in the control block.
    pub(crate) fn code(self) -> u64 {
        match self {
            Self::Other(code) => code,
            _ => Self::KNOWN.iter().find(|known| known.1 == self).map_or(u64::MAX, |known| known.0),
        }
    }
}

impl From<u64> for Reason {
    /// -1 counts as such also where only its lower half was written, as emulators do.
    fn from(code: u64) -> Self {
        if code as u32 == u32::MAX {
            return Self::Invalid;
        }
        Self::KNOWN.iter().find(|known| known.0 == code).map_or(Self::Other(code), |known| known.1)
    }
}
