//! Choices that the manual leaves open, and hardware that does not exist yet.

/// How the model behaves where real processors may differ.
///
/// The default is the newest manual's wording, read literally. A driver must be right under every setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    /// A virtualized write to the spurious-interrupt register (page offset 0F0, or WRMSR 80F when "virtualize x2APIC
    /// mode" and "APIC-register virtualization" are 1) is stored in the page and nothing else happens. No processor
    /// does this today.
    pub svr_writes_never_exit: bool,
    /// With virtual-interrupt delivery and without APIC-register virtualization, reads of page offsets 0B0 and 300 are
    /// virtualized. Older printings of the manual do not say so.
    pub vid_virtualizes_reads: bool,
    /// With IPI virtualization alone, reads of page offset 300 are virtualized, as writes to it are.
    pub ipiv_virtualizes_icr_reads: bool,
    /// Without APIC-register virtualization, a write anywhere in the 16 bytes at page offset 0B0 or 300 is virtualized as one
    /// to that offset would be. With it, one in the 16 bytes at 310 is treated as one to 310. If
    /// false only the exact offset counts.
    pub writes_by_slot: bool,
    /// Virtualized WRMSR 80B and 83F store EDX:EAX in the page. If false the first
    /// clears its low word, and the second leaves the page alone unless it exits.
    pub delivery_stores_msrs: bool,
    /// EOI virtualization with SVI = 0 acts on vector 0 and asks bit 0 of the EOI-exit bitmap. If false it changes
    /// nothing but VPPR and never exits.
    pub spurious_eoi_is_vector_0: bool,
    /// A memory-mapped write to the ICR whose reserved bits are not all 0 is not a candidate for IPI virtualization.
    pub xapic_ipiv_checks_reserved: bool,
    /// Posted-interrupt processing sets RVI to the higher of RVI and the highest vector in VIRR, where the manual says that of
    /// RVI and what was posted. The two differ only if software left RVI below VIRR.
    pub posting_rescans_virr: bool,
    /// Translations that a core has made stay until they are flushed, as with VPIDs. If false each VM entry and VM exit
    /// forgets them.
    pub translations_survive_exits: bool,
    /// A WRMSR to 830 with shorthand "self" is a self-IPI that the processor sends, where virtual-interrupt delivery and IPI
    /// virtualization are both on. If false it exits.
    pub ipiv_sends_self_by_msr: bool,
    /// VM entry with IPI virtualization and without virtual-interrupt delivery is refused.
    pub ipiv_needs_delivery: bool,
    /// What the VM-exit instruction length field holds at APIC-access exits, for which the manual does not define it.
    pub apic_access_length: u32,
    /// VM entry checks the PID-pointer table address, and that IPI virtualization comes with the TPR shadow.
    pub ipiv_entry_checks: bool,
    /// VM entry clears bytes 3:1 of VTPR, even if it then fails.
    pub entry_clears_vtpr_upper_bytes: bool,
    /// VTPR bits 3:0 survive a guest's write to offset 080. No public test shows whether all processors keep them.
    pub tpr_keeps_low_bits: bool,
}

impl Knobs {
    /// The newest manual, read literally.
    pub const DEFAULT: Self = Knobs {
        svr_writes_never_exit: false,
        vid_virtualizes_reads: true,
        ipiv_virtualizes_icr_reads: false,
        writes_by_slot: false,
        delivery_stores_msrs: true,
        spurious_eoi_is_vector_0: true,
        xapic_ipiv_checks_reserved: true,
        posting_rescans_virr: false,
        translations_survive_exits: true,
        ipiv_sends_self_by_msr: false,
        ipiv_needs_delivery: false,
        apic_access_length: 0,
        ipiv_entry_checks: true,
        entry_clears_vtpr_upper_bytes: true,
        tpr_keeps_low_bits: true,
    };
}

impl Default for Knobs {
    fn default() -> Self {
        Self::DEFAULT
    }
}
