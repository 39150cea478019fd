//! The other readings of the manual.

use super::exit::code;
use super::knobs::{CleanGroup, Knobs, TprAtVmrun};

/// One knob turned to another value than the default.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// What the processor does.
    pub name: &'static str,
    /// The field of [`Knobs`] that is turned.
    pub knob: &'static str,
    /// What software can do about it.
    pub kind: Kind,
    /// The default with this knob turned.
    pub knobs: Knobs,
}

/// What software can do about a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The manual leaves it open: software has to be right either way.
    Open,
    /// As above, but the guest sees something wrong that software cannot mend.
    Lossy,
    /// Not a matter of reading: hardware that is broken or does not exist yet, of which software is told.
    Told,
}

impl Knobs {
    /// Every other reading of the manual, one at a time, late doorbells among them.
    #[must_use]
    pub fn readings() -> Vec<Reading> {
        Self::readings_of(Kind::Open)
    }

    /// The readings of one kind.
    #[must_use]
    pub fn readings_of(kind: Kind) -> Vec<Reading> {
        let mut readings = Self::all_readings();
        readings.retain(|reading| reading.kind == kind);
        readings
    }
}

/// Makes `Knobs::all_readings` of a list of every knob. One that is left out, or is there twice, does not compile: the
/// pattern names all fields and has no `..`.
macro_rules! readings {
    ($($knob:ident { $($kind:ident $name:literal => $value:expr,)+ })*) => {
        impl Knobs {
            /// Every knob turned to each of its other values, one at a time.
            #[must_use]
            pub fn all_readings() -> Vec<Reading> {
                let default = Knobs::default();
                let Knobs { $($knob: _),* } = default;
                vec![$($(Reading {
                    name: $name,
                    knob: stringify!($knob),
                    kind: Kind::$kind,
                    knobs: Knobs { $knob: $value, ..default },
                },)+)*]
            }
        }
    };
}

readings! {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reading_differs_from_the_default_and_from_the_others() {
        let readings = Knobs::all_readings();
        for (number, reading) in readings.iter().enumerate() {
            assert_ne!(reading.knobs, Knobs::default(), "{}", reading.name);
            for other in &readings[..number] {
                assert_ne!(reading.knobs, other.knobs, "{}, {}", reading.name, other.name);
                assert_ne!(reading.name, other.name);
            }
        }
    }
}
