//! The virtual-machine control block: a 4-KByte page of raw words.

/// Byte offsets in the page.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod field {
    pub const CR_INTERCEPTS: usize = 0x000;
    pub const INTERCEPTS_3: usize = 0x00c;
    pub const INTERCEPTS_4: usize = 0x010;
    pub const INTERCEPTS_5: usize = 0x014;
    pub const MSRPM_BASE: usize = 0x048;
    pub const ASID: usize = 0x058;
    pub const TLB_CONTROL: usize = 0x05c;
    /// V_TPR to V_INTR_VECTOR, 64 bits.
    pub const VIRTUAL_INTERRUPT: usize = 0x060;
    pub const INTERRUPT_SHADOW: usize = 0x068;
    pub const EXIT_CODE: usize = 0x070;
    pub const EXIT_INFO_1: usize = 0x078;
    pub const EXIT_INFO_2: usize = 0x080;
    pub const EXIT_INT_INFO: usize = 0x088;
    pub const NESTED_CONTROL: usize = 0x090;
    pub const APIC_BAR: usize = 0x098;
    pub const EVENT_INJECTION: usize = 0x0a8;
    pub const NESTED_CR3: usize = 0x0b0;
    pub const CLEAN_BITS: usize = 0x0c0;
    pub const NEXT_RIP: usize = 0x0c8;
    pub const BACKING_PAGE: usize = 0x0e0;
    pub const LOGICAL_TABLE: usize = 0x0f0;
    pub const PHYSICAL_TABLE: usize = 0x0f8;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
}

/// Bits of the 64-bit word at [`field::VIRTUAL_INTERRUPT`].
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod control {
    pub const V_TPR: u64 = 0xf;
    pub const V_IRQ: u64 = 1 << 8;
    pub const V_GIF: u64 = 1 << 9;
    pub const V_NMI: u64 = 1 << 11;
    pub const V_NMI_MASK: u64 = 1 << 12;
    pub const V_IGN_TPR: u64 = 1 << 20;
    pub const V_INTR_MASKING: u64 = 1 << 24;
    pub const V_GIF_ENABLE: u64 = 1 << 25;
    pub const V_NMI_ENABLE: u64 = 1 << 26;
    pub const X2AVIC: u64 = 1 << 30;
    pub const AVIC: u64 = 1 << 31;
}

/// Intercepts, as bits of the 32-bit word named by each.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod intercept {
    /// In [`field::CR_INTERCEPTS`](super::field::CR_INTERCEPTS).
    pub const CR8_READ: u32 = 1 << 8;
    pub const CR8_WRITE: u32 = 1 << 24;
    /// In [`field::INTERCEPTS_3`](super::field::INTERCEPTS_3).
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const VINTR: u32 = 1 << 4;
    pub const HLT: u32 = 1 << 24;
    pub const MSR_PROT: u32 = 1 << 28;
    /// In [`field::INTERCEPTS_4`](super::field::INTERCEPTS_4).
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    /// In [`field::INTERCEPTS_5`](super::field::INTERCEPTS_5).
    pub const IDLE_HLT: u32 = 1 << 6;
}

/// A VMCB at a physical address.
///
/// It holds bytes and nothing else; a driver that works on a page of its own kind gets them through
/// [`bytes_mut`](Vmcb::bytes_mut). The model takes the VMCB with VMRUN and gives it back at the exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmcb {
    address: u64,
    bytes: Box<Bytes>,
}

/// The page, aligned as hardware wants it, so that a driver may view it as its own type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
struct Bytes([u8; 4096]);

impl Vmcb {
    /// A page of zeros at a physical address.
    #[must_use]
    pub fn new(address: u64) -> Self {
        Vmcb { address, bytes: Box::new(Bytes([0; 4096])) }
    }

    /// The physical address that VMRUN is given in rAX.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The whole page.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.bytes.0
    }

    /// The whole page, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        &mut self.bytes.0
    }

    /// The 32-bit word at a byte offset.
    #[must_use]
    pub fn get32(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes.0[offset..offset + 4]);
        u32::from_le_bytes(word)
    }

    /// The 64-bit word at a byte offset.
    #[must_use]
    pub fn get64(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes.0[offset..offset + 8]);
        u64::from_le_bytes(word)
    }

    /// Writes the 32-bit word at a byte offset.
    pub fn set32(&mut self, offset: usize, value: u32) {
        self.bytes.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Writes the 64-bit word at a byte offset.
    pub fn set64(&mut self, offset: usize, value: u64) {
        self.bytes.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets bits of the 32-bit word at a byte offset.
    pub fn set_bits32(&mut self, offset: usize, bits: u32) {
        self.set32(offset, self.get32(offset) | bits);
    }

    /// Sets bits of the 64-bit word at a byte offset.
    pub fn set_bits64(&mut self, offset: usize, bits: u64) {
        self.set64(offset, self.get64(offset) | bits);
    }

    /// Clears bits of the 64-bit word at a byte offset.
    pub fn clear_bits64(&mut self, offset: usize, bits: u64) {
        self.set64(offset, self.get64(offset) & !bits);
    }

    /// Copies a range of bytes from another VMCB.
    pub(super) fn copy_range(&mut self, from: &Vmcb, range: std::ops::Range<usize>) {
        self.bytes.0[range.clone()].copy_from_slice(&from.bytes.0[range]);
    }
}
