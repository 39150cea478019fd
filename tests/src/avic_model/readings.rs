//! The other readings of the manual, late doorbells among them.

use super::exit::code;
use super::knobs::{CleanGroup, Knobs, TprAtVmrun};
pub use crate::readings::Kind;

/// One knob of the AVIC model turned.
pub type Reading = crate::readings::Reading<Knobs>;

crate::readings::readings! {
    svr_writes_never_exit { Told "SVR writes never exit" => true, }
    late_doorbells { Open "late doorbells" => true, }
    stale_is_running { Told "erratum 1235" => true, }
    clean_bits { Open "clean bits are ignored" => false, }
    enable_bits_covered_by {
        Open "the AVIC clean bit covers the enable bits" => CleanGroup::Avic,
        Open "both clean bits cover the enable bits" => CleanGroup::Both,
        Open "no clean bit covers the enable bits" => CleanGroup::Neither,
    }

    bad_pointer_code { Open "bad pointers fault" => code::NESTED_PAGE_FAULT, }
    avic_without_nested_paging_is_refused {
        Open "AVIC without nested paging does nothing" => false,
    }
    misaligned_pointers_are_refused { Open "misaligned pointers are refused" => true, }
    tpr_at_vmrun {
        Open "VMRUN writes V_TPR to the page" => TprAtVmrun::VTprIntoPage,
        Lossy "VMRUN overwrites the page's TPR" => TprAtVmrun::VTprOverPage,
        Open "VMRUN takes the page's TPR" => TprAtVmrun::Page,
    }
    vmrun_computes_ppr { Open "VMRUN believes the page's PPR" => false, }

    x2apic_checks_come_first { Open "x2APIC checks do not come first" => false, }
    unnamed_offsets_are_memory { Open "unnamed offsets exit" => false, }

    vector_is_checked_before_type { Open "the vector is checked before the type" => true, }
    logical_lookups_come_first { Lossy "logical IPIs deliver as they go" => false, }
    broadcast_lookups_come_first { Open "broadcasts deliver as they go" => false, }
    x2avic_broadcasts_all_ones { Open "all ones is no broadcast" => false, }
    others_excludes_self { Lossy "all excluding self includes self" => false, }
    x2avic_uses_entry_255 { Open "x2AVIC does not use entry 255" => false, }
    reports_first_not_running { Open "the last sleeper is reported" => false, }
    dfr_is_read_at_each_ipi { Open "DFR is read at VMRUN" => false, }
    busy_is_left_set { Open "the busy bit is left set" => true, }

    level_eoi_clears_isr { Open "a level EOI clears ISR" => true, }
    level_eoi_is_a_trap { Lossy "the exit of a level EOI is a fault" => false, }
    next_rip_at_avic_exits { Open "next RIP is saved" => true, }
    undefined_bits_are_set { Open "undefined bits are set" => true, }
    doorbell_takes_wide_ids { Open "doorbells take 8 bits of APIC ID" => false, }
    vintr_intercept_works_with_avic { Open "the interrupt window works with AVIC" => true, }
    idle_hlt_ignores_priority { Open "idle HLT ignores priority" => true, }
    intr_ignores_host_if { Open "INTR respects the host's IF" => false, }

    log_bit_is_not_cached { Lossy "the IOMMU caches GALogIntr" => false, }
}
