//! Choices that the manual leaves open, hardware that does not exist yet, and hardware that is broken.

/// How the model behaves where real processors may differ.
///
/// The default is the reading that the available evidence supports best. A driver should be right under every setting;
/// those marked *lossy* let the guest see something wrong that no driver can mend without a work-around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    /// A write to the spurious-interrupt register is stored in the page and nothing else happens. No processor does
    /// this today.
    pub svr_writes_never_exit: bool,
    /// Doorbells stay in flight until the schedule lets them arrive. Otherwise they arrive before anything else moves.
    pub late_doorbells: bool,
    /// Erratum 1235, *lossy*: an IPI looks at IsRunning as it was before IRR was written. A target that stopped in
    /// between is not reported.
    pub stale_is_running: bool,
    /// VMCB clean bits are honoured. Otherwise every field is loaded at every VMRUN, as hardware may.
    pub clean_bits: bool,
    /// The clean bit that covers the AVIC and x2AVIC enable bits.
    pub enable_bits_covered_by: CleanGroup,

    /// VMRUN: the exit code when an AVIC pointer is outside the physical address range.
    pub bad_pointer_code: u64,
    /// VMRUN: AVIC without nested paging is refused. Otherwise AVIC silently does nothing.
    pub avic_without_nested_paging_is_refused: bool,
    /// VMRUN: low 12 bits set in the backing-page or logical-table pointer are refused. Otherwise they are ignored.
    pub misaligned_pointers_are_refused: bool,
    /// VMRUN: where the task priority comes from.
    pub tpr_at_vmrun: TprAtVmrun,
    /// VMRUN computes PPR anew. Otherwise it believes the page.
    pub vmrun_computes_ppr: bool,

    /// x2AVIC: every check that x2APIC makes comes before AVIC looks at the access: registers that do not exist, reads
    /// of write-only and writes of read-only registers, reserved bits. Otherwise only the ICR's reserved bits are
    /// checked, and the table decides on the rest.
    pub x2apic_checks_come_first: bool,
    /// Offsets that the access table does not name are plain memory. Otherwise they exit.
    pub unnamed_offsets_are_memory: bool,

    /// An ICR write with a vector below 16 and an unsupported type is reported for its vector, not for its type.
    pub vector_is_checked_before_type: bool,
    /// A logical destination is looked up completely before the first IRR bit is set. Otherwise an invalid target
    /// leaves the targets before it requested (*lossy*: sending the IPI again can then deliver it twice).
    pub logical_lookups_come_first: bool,
    /// The same for broadcasts, which only stop at a backing page that cannot be.
    pub broadcast_lookups_come_first: bool,
    /// x2AVIC: destination FFFFFFFF, and logical cluster FFFF, is a broadcast. Otherwise it is an invalid target.
    pub x2avic_broadcasts_all_ones: bool,
    /// "All excluding self" leaves the sender out. Otherwise the sender is among the targets (*lossy*: it gets an
    /// interrupt that it did not send to itself).
    pub others_excludes_self: bool,
    /// x2AVIC: table entry 255 is as any other. Otherwise a directed IPI to it finds no target.
    pub x2avic_uses_entry_255: bool,
    /// The index reported when several targets do not run is that of the first. Otherwise that of the last.
    pub reports_first_not_running: bool,
    /// DFR is read from the sender's page at each IPI. Otherwise as it was at VMRUN.
    pub dfr_is_read_at_each_ipi: bool,
    /// ICR bit 12 is left set in the page and in EXITINFO1.
    pub busy_is_left_set: bool,

    /// A level-triggered EOI has already cleared its ISR bit when it exits.
    pub level_eoi_clears_isr: bool,
    /// The exit of a level-triggered EOI leaves RIP past the instruction. Otherwise at it (*lossy*: who has ended the
    /// interrupt and enters again has the guest write EOI once more).
    pub level_eoi_is_a_trap: bool,
    /// Next-RIP is saved at AVIC exits. Otherwise it reads as 0.
    pub next_rip_at_avic_exits: bool,
    /// Exit-information bits that the manual does not define are ones.
    pub undefined_bits_are_set: bool,
    /// The doorbell register takes APIC IDs above 255. Otherwise the write raises #GP.
    pub doorbell_takes_wide_ids: bool,
    /// The VINTR intercept also exits for an interrupt that AVIC is about to deliver.
    pub vintr_intercept_works_with_avic: bool,
    /// Idle HLT looks for any vector in IRR. Otherwise for one that TPR and ISR let through.
    pub idle_hlt_ignores_priority: bool,
    /// A physical interrupt exits even when VMRUN was executed with the host's RFLAGS.IF clear.
    pub intr_ignores_host_if: bool,

    /// IOMMU: GALogIntr of an entry is looked at anew each time, as IsRun is. Otherwise it is as the IOMMU read it
    /// first, until software invalidates the entry (*lossy*: a vCPU that went to sleep since is not woken).
    pub log_bit_is_not_cached: bool,
}

/// A group of VMCB fields with one clean bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanGroup {
    /// Clean bit 3, as the rest of its 64-bit word.
    Tpr,
    /// Clean bit 11, as the other fields of AVIC.
    Avic,
    /// Either of the two, if it is set.
    Both,
    /// Neither: the bits are loaded at every VMRUN.
    Neither,
}

/// What VMRUN does about the two places where the task priority is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TprAtVmrun {
    /// V_TPR counts. The page keeps what it has.
    VTpr,
    /// V_TPR counts and is written to the page, unless the page has the same class.
    VTprIntoPage,
    /// V_TPR counts and is written to the page (*lossy*: TPR bits 3:0 are lost).
    VTprOverPage,
    /// The page counts, and V_TPR follows it.
    Page,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            svr_writes_never_exit: false,
            late_doorbells: false,
            stale_is_running: false,
            clean_bits: true,
            enable_bits_covered_by: CleanGroup::Tpr,
            bad_pointer_code: super::exit::code::INVALID,
            avic_without_nested_paging_is_refused: true,
            misaligned_pointers_are_refused: false,
            tpr_at_vmrun: TprAtVmrun::VTpr,
            vmrun_computes_ppr: true,
            x2apic_checks_come_first: true,
            unnamed_offsets_are_memory: true,
            vector_is_checked_before_type: false,
            logical_lookups_come_first: true,
            broadcast_lookups_come_first: true,
            x2avic_broadcasts_all_ones: true,
            others_excludes_self: true,
            x2avic_uses_entry_255: true,
            reports_first_not_running: true,
            dfr_is_read_at_each_ipi: true,
            busy_is_left_set: false,
            level_eoi_clears_isr: false,
            level_eoi_is_a_trap: true,
            next_rip_at_avic_exits: false,
            undefined_bits_are_set: false,
            doorbell_takes_wide_ids: true,
            vintr_intercept_works_with_avic: false,
            idle_hlt_ignores_priority: false,
            intr_ignores_host_if: true,
            log_bit_is_not_cached: true,
        }
    }
}
