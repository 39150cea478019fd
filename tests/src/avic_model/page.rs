//! Registers of the backing page that the hardware itself uses.

/// Byte offsets.
pub(super) mod offset {
    pub(in crate::avic_model) const TPR: u32 = 0x080;
    pub(in crate::avic_model) const PPR: u32 = 0x0a0;
    pub(in crate::avic_model) const EOI: u32 = 0x0b0;
    pub(in crate::avic_model) const DFR: u32 = 0x0e0;
    pub(in crate::avic_model) const ISR: u32 = 0x100;
    pub(in crate::avic_model) const TMR: u32 = 0x180;
    pub(in crate::avic_model) const IRR: u32 = 0x200;
    pub(in crate::avic_model) const ICR_LOW: u32 = 0x300;
    pub(in crate::avic_model) const ICR_HIGH: u32 = 0x310;
    pub(in crate::avic_model) const SELF_IPI: u32 = 0x3f0;
}
