//! Exits, and the other results of a guest operation.

/// Exit codes.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod code {
    pub const CR8_READ: u64 = 0x08;
    pub const CR8_WRITE: u64 = 0x18;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const VINTR: u64 = 0x64;
    pub const HLT: u64 = 0x78;
    pub const MSR: u64 = 0x7c;
    pub const VMMCALL: u64 = 0x81;
    pub const IDLE_HLT: u64 = 0xa6;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INCOMPLETE_IPI: u64 = 0x401;
    pub const NO_ACCELERATION: u64 = 0x402;
    pub const INVALID: u64 = u64::MAX;
}

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
    /// At this boundary an interrupt with this vector was delivered through the guest's IDT.
    Delivered(u8),
    /// At this boundary a virtual NMI was delivered.
    DeliveredNmi,
    /// The boundary brought no event.
    Nothing,
    /// The guest was left. The VMCB holds the same exit information.
    Exit(VmExit),
}

impl Outcome {
    /// The exit, if there was one.
    #[must_use]
    pub fn exit(self) -> Option<VmExit> {
        match self {
            Outcome::Exit(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A #VMEXIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmExit {
    /// EXITCODE; one of [`code`].
    pub code: u64,
    /// EXITINFO1.
    pub info_1: u64,
    /// EXITINFO2.
    pub info_2: u64,
    /// Whether the operation completed: RIP is after it, and its write is in the page. Otherwise RIP is at the
    /// operation and it did nothing.
    pub trap: bool,
}

/// EXITINFO1 bit 32 of a no-acceleration exit: the access was a write.
const WRITE: u64 = 1 << 32;

impl VmExit {
    /// An exit before the operation did anything.
    pub(super) fn fault(code: u64, info_1: u64, info_2: u64) -> Self {
        VmExit { code, info_1, info_2, trap: false }
    }

    /// A no-acceleration exit for a page offset; `vector` is that of a level-triggered EOI.
    pub(super) fn no_acceleration(
        offset: u32,
        write: bool,
        vector: Option<u8>,
        trap: bool,
    ) -> Self {
        let info_1 = u64::from(offset & 0xff0) | if write { WRITE } else { 0 };
        let info_2 = vector.map_or(0, u64::from);
        VmExit { code: code::NO_ACCELERATION, info_1, info_2, trap }
    }

    /// An incomplete-IPI exit; `icr` is the 64-bit ICR as EXITINFO1 shows it.
    pub(super) fn incomplete_ipi(icr: u64, cause: IncompleteIpi) -> Self {
        let (id, index) = match cause {
            IncompleteIpi::InvalidType => (0, 0),
            IncompleteIpi::NotRunning { index } => (1, index),
            IncompleteIpi::InvalidTarget { index } => (2, index),
            IncompleteIpi::InvalidBackingPage { index } => (3, index),
            IncompleteIpi::InvalidVector => (4, 0),
        };
        let info_2 = id << 32 | u64::from(index & 0xfff);
        VmExit { code: code::INCOMPLETE_IPI, info_1: icr, info_2, trap: true }
    }
}

/// Why an IPI was not completed. Id 5 belongs to Secure AVIC, which the model does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IncompleteIpi {
    InvalidType,
    NotRunning { index: u32 },
    InvalidTarget { index: u32 },
    InvalidBackingPage { index: u32 },
    InvalidVector,
}
