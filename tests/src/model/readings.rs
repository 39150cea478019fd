//! The other readings of the manual.

use super::knobs::Knobs;
pub use crate::readings::Kind;

/// One knob of the APICv model turned.
pub type Reading = crate::readings::Reading<Knobs>;

crate::readings::readings! {
    svr_writes_never_exit { Told "SVR writes never exit" => true, }
    vid_virtualizes_reads { Open "delivery alone virtualizes no reads" => false, }
    ipiv_virtualizes_icr_reads { Open "IPI virtualization virtualizes ICR reads" => true, }
    writes_by_slot { Open "a write counts anywhere in its slot" => true, }
    delivery_stores_msrs { Open "virtualized MSR writes are not stored" => false, }
    spurious_eoi_is_vector_0 { Open "an EOI of nothing does nothing" => false, }
    xapic_ipiv_checks_reserved { Open "reserved bits of ICR are not looked at" => false, }
    posting_rescans_virr { Open "posting looks at all of VIRR" => true, }
    translations_survive_exits { Open "exits forget translations" => false, }
    ipiv_sends_self_by_msr { Open "IPI virtualization sends to self" => true, }
    ipiv_needs_delivery { Open "IPI virtualization needs delivery" => true, }
    apic_access_length {
        Open "a length at APIC-access exits" => 3,
        Open "the longest length at APIC-access exits" => 15,
    }
    ipiv_entry_checks { Open "VM entry does not check IPI virtualization" => false, }
    entry_clears_vtpr_upper_bytes { Open "VM entry leaves VTPR alone" => false, }
    tpr_keeps_low_bits { Lossy "TPR bits 3:0 are lost" => false, }
}
