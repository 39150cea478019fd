//! The sets of controls.

use crate::Random;

/// Which controls are 1 in a run of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// For people and records.
    pub name: &'static str,
    /// Use TPR shadow.
    pub tpr_shadow: bool,
    /// Virtualize APIC accesses.
    pub apic_accesses: bool,
    /// Virtualize x2APIC mode.
    pub x2apic: bool,
    /// APIC-register virtualization.
    pub registers: bool,
    /// Virtual-interrupt delivery.
    pub delivery: bool,
    /// Process posted interrupts.
    pub posted: bool,
}

impl Setup {
    const NONE: Self = Self {
        name: "none",
        tpr_shadow: false,
        apic_accesses: false,
        x2apic: false,
        registers: false,
        delivery: false,
        posted: false,
    };
    const XAPIC: Self = Self { apic_accesses: true, tpr_shadow: true, ..Self::NONE };
    const X2APIC: Self = Self { x2apic: true, tpr_shadow: true, ..Self::NONE };

    /// Every set that is tried.
    pub const ALL: [Self; 14] = [
        Self { name: "accesses", tpr_shadow: false, ..Self::XAPIC },
        Self { name: "shadow", tpr_shadow: true, ..Self::NONE },
        Self { name: "shadow-delivery", tpr_shadow: true, delivery: true, ..Self::NONE },
        Self { name: "accesses-shadow", ..Self::XAPIC },
        Self { name: "accesses-registers", registers: true, ..Self::XAPIC },
        Self { name: "accesses-delivery", delivery: true, ..Self::XAPIC },
        Self {
            name: "accesses-registers-delivery",
            registers: true,
            delivery: true,
            ..Self::XAPIC
        },
        Self { name: "accesses-delivery-posted", delivery: true, posted: true, ..Self::XAPIC },
        Self {
            name: "accesses-posted",
            registers: true,
            delivery: true,
            posted: true,
            ..Self::XAPIC
        },
        Self { name: "x2apic-shadow", ..Self::X2APIC },
        Self { name: "x2apic-registers", registers: true, ..Self::X2APIC },
        Self { name: "x2apic-delivery", delivery: true, ..Self::X2APIC },
        Self { name: "x2apic-registers-delivery", registers: true, delivery: true, ..Self::X2APIC },
        Self {
            name: "x2apic-posted",
            registers: true,
            delivery: true,
            posted: true,
            ..Self::X2APIC
        },
    ];

    /// Whether MOV to and from CR8 exit: without the TPR shadow they would reach the host's own TPR.
    #[must_use]
    pub const fn cr8_exits(&self) -> bool {
        !self.tpr_shadow
    }

    /// The interface through which the guest reaches its APIC, in words of the records.
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        if self.x2apic { "x2apic" } else { "xapic" }
    }

    /// Whether the MSR bitmap of a batch has the access to an x2APIC MSR exit.
    ///
    /// What nothing virtualizes would reach the host's own APIC, so it always does; some of the others do as well.
    #[must_use]
    pub fn intercepts(&self, batch_seed: u64, msr: u32, write: bool) -> bool {
        let virtualized = match msr {
            _ if !self.x2apic => false,
            0x808 => true,
            0x80b | 0x83f if write => self.delivery,
            0x800..=0x8ff => !write && self.registers,
            _ => false,
        };
        let part = u64::from(msr) << 1 | u64::from(write);
        !virtualized || Random::part(batch_seed, part).one_in(8)
    }

    /// The TPR threshold to load when `wanted` is the host's wish: without "virtualize APIC accesses" and virtual-interrupt
    /// delivery an entry would fail with one above VTPR's class.
    #[must_use]
    pub const fn threshold(&self, wanted: u8, vtpr: u8) -> u8 {
        let class = vtpr >> 4;
        if self.apic_accesses || self.delivery || wanted <= class { wanted } else { class }
    }
}
