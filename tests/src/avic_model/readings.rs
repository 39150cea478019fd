//! The other readings of the manual.

use super::knobs::{CleanGroup, Knobs, TprAtVmrun};

impl Knobs {
    /// Every other reading of the manual, one at a time and with its name: the default with one knob turned.
    ///
    /// Late doorbells are among them; a silent SVR, the erratum and the lossy readings are not.
    #[must_use]
    pub fn readings() -> Vec<(&'static str, Self)> {
        let reading = |(name, turn): &Reading| {
            let mut knobs = Knobs::default();
            turn(&mut knobs);
            (*name, knobs)
        };
        READINGS.iter().map(reading).collect()
    }
}

/// A name, and what to turn.
type Reading = (&'static str, fn(&mut Knobs));

const READINGS: &[Reading] = &[
    ("late doorbells", |knobs| knobs.late_doorbells = true),
    ("clean bits are ignored", |knobs| knobs.clean_bits = false),
    ("the AVIC clean bit covers the enable bits", |knobs| {
        knobs.enable_bits_covered_by = CleanGroup::Avic;
    }),
    ("both clean bits cover the enable bits", |knobs| {
        knobs.enable_bits_covered_by = CleanGroup::Both;
    }),
    ("no clean bit covers the enable bits", |knobs| {
        knobs.enable_bits_covered_by = CleanGroup::Neither;
    }),
    ("misaligned pointers are refused", |knobs| {
        knobs.misaligned_pointers_are_refused = true;
    }),
    ("AVIC without nested paging does nothing", |knobs| {
        knobs.avic_without_nested_paging_is_refused = false;
    }),
    ("VMRUN writes V_TPR to the page", |knobs| {
        knobs.tpr_at_vmrun = TprAtVmrun::VTprIntoPage;
    }),
    ("VMRUN takes the page's TPR", |knobs| knobs.tpr_at_vmrun = TprAtVmrun::Page),
    ("VMRUN believes the page's PPR", |knobs| knobs.vmrun_computes_ppr = false),
    ("x2APIC checks do not come first", |knobs| knobs.x2apic_checks_come_first = false),
    ("unnamed offsets exit", |knobs| knobs.unnamed_offsets_are_memory = false),
    ("the vector is checked before the type", |knobs| {
        knobs.vector_is_checked_before_type = true;
    }),
    ("broadcasts deliver as they go", |knobs| knobs.broadcast_lookups_come_first = false),
    ("all ones is no broadcast", |knobs| knobs.x2avic_broadcasts_all_ones = false),
    ("x2AVIC does not use entry 255", |knobs| knobs.x2avic_uses_entry_255 = false),
    ("the last sleeper is reported", |knobs| knobs.reports_first_not_running = false),
    ("DFR is read at VMRUN", |knobs| knobs.dfr_is_read_at_each_ipi = false),
    ("the busy bit is left set", |knobs| knobs.busy_is_left_set = true),
    ("a level EOI clears ISR", |knobs| knobs.level_eoi_clears_isr = true),
    ("next RIP is saved", |knobs| knobs.next_rip_at_avic_exits = true),
    ("undefined bits are set", |knobs| knobs.undefined_bits_are_set = true),
    ("the interrupt window works with AVIC", |knobs| {
        knobs.vintr_intercept_works_with_avic = true;
    }),
    ("idle HLT ignores priority", |knobs| knobs.idle_hlt_ignores_priority = true),
    ("INTR respects the host's IF", |knobs| knobs.intr_ignores_host_if = false),
];
