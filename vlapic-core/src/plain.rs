//! The registers whose value is what the page holds, in every profile: the way to read most of them.

/// Which registers those are, one bit for each of the 16-byte slots 0 to 3F.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    in_memory: u64,
    in_msrs: u64,
}

impl Plain {
    /// `ppr` says whether PPR is one of them: whether all that changes TPR or ISR changes it too.
    pub(crate) const fn new(ppr: bool) -> Self {
        let in_msrs = if ppr { ALWAYS | PPR } else { ALWAYS };
        Self { in_memory: in_msrs | NOT_IN_MSRS, in_msrs }
    }

    /// Whether a read of the register at `offset` in the window, a dword's, is a load from the page.
    #[inline]
    pub(crate) const fn in_memory(&self, offset: u16) -> bool {
        // The whole offset of a slot below 40.
        let offset = offset as u32;
        offset & 0xFC0F == 0 && self.in_memory >> (offset >> 4 & 0x3F) & 1 != 0
    }

    /// Whether a read of MSR 800 + `index` in x2APIC mode is a load from the page.
    #[inline]
    pub(crate) const fn in_msrs(&self, index: u32) -> bool {
        index < 0x40 && self.in_msrs >> index & 1 != 0
    }
}

/// ID, version, TPR, LDR, SVR, the banks of ISR, TMR and IRR, ESR, initial count, divide configuration.
/// Not the banks of vectors 0 to 31: those below 16 are never in ISR, TMR and IRR, whatever somebody has
/// scribbled there.
const ALWAYS: u64 = 1 << 0x02
    | 1 << 0x03
    | 1 << 0x08
    | 1 << 0x0D
    | 1 << 0x0F
    | 0xFE << 0x10
    | 0xFE << 0x18
    | 0xFE << 0x20
    | 1 << 0x28
    | 1 << 0x38
    | 1 << 0x3E;

const PPR: u64 = 1 << 0x0A;

/// DFR and both halves of ICR, which in x2APIC mode do not exist or are one register.
const NOT_IN_MSRS: u64 = 1 << 0x0E | 1 << 0x30 | 1 << 0x31;
