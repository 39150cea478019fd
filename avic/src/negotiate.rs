//! What the hypervisor wants, what processor and host have, and what comes of it.

use core::fmt;

use crate::capability::Capabilities;
use crate::host::Host;

/// A set of [`Feature`]s.
pub type Features = vlapic_core::Features<Feature>;

/// What a hypervisor asks for.
///
/// ```
/// use avic::{Feature, Wanted};
///
/// let wanted = Wanted::ALL.without(Feature::IsRunning);
/// assert!(wanted.contains(Feature::Doorbell));
/// ```
pub type Wanted = vlapic_core::Wanted<Feature>;

/// What came of a negotiation.
pub type Grant = vlapic_core::Grant<Feature>;

/// Why a feature is not granted.
pub type Reason = vlapic_core::Reason<Feature>;

/// Grants of `wanted` what `caps` and `host` allow, with a reason for each thing refused.
#[must_use]
pub fn negotiate(wanted: Wanted, caps: &Capabilities, host: &Host) -> Grant {
    Grant::negotiate(wanted, |feature, granted| refusal(feature, caps, host, granted))
}

fn refusal(
    feature: Feature,
    caps: &Capabilities,
    host: &Host,
    granted: Features,
) -> Option<Reason> {
    let needs = |other| (granted.contains(other), Reason::Needs(other));
    let has = |present| (present, Reason::NotSupported);
    let unless = |met, obstacle| (met, Reason::Obstacle(obstacle));
    let met = (true, Reason::NotWanted);
    let conditions = match feature {
        Feature::Avic => [
            has(caps.avic),
            unless(caps.nested_paging && host.nested_paging, Obstacle::NestedPaging),
            unless(!host.snp || caps.snp_writes_in_use_pages, Obstacle::SnpHost),
        ],
        Feature::X2Avic => {
            [needs(Feature::Avic), has(caps.x2avic), unless(caps.host_x2apic, Obstacle::HostX2Apic)]
        }
        Feature::ExtendedIds => [needs(Feature::X2Avic), has(caps.x2avic_extended), met],
        Feature::Doorbell => {
            [needs(Feature::Avic), unless(host.doorbell, Obstacle::NoDoorbell), met]
        }
        Feature::IsRunning => {
            [needs(Feature::Avic), unless(!caps.erratum_1235, Obstacle::Erratum1235), met]
        }
        Feature::ExtendedLvt => [needs(Feature::Avic), has(caps.extended_lvt), met],
        Feature::VirtualNmi => [has(caps.vnmi), unless(caps.vgif, Obstacle::VirtualGif), met],
    };
    conditions.into_iter().find(|(met, _)| !met).map(|(_, reason)| reason)
}

/// One thing that the processor can do for a vCPU's local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Feature {
    /// AVIC: interrupts, EOI and IPIs without exits; the register window of xAPIC mode.
    Avic,
    /// x2AVIC: the same for the MSRs of x2APIC mode.
    X2Avic,
    /// x2AVIC tables of 4096 vCPUs, not 512.
    ExtendedIds,
    /// A running vCPU is told of posts by the doorbell; without it, by an exit.
    Doorbell,
    /// IsRunning is published in the physical table, so that IPIs to a running vCPU do not exit at
    /// their sender.
    IsRunning,
    /// The extended LVT registers are in the page.
    ExtendedLvt,
    /// NMIs are pended in the VMCB and masked by the processor.
    VirtualNmi,
}

impl Feature {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All, each after those that it depends on.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Avic,
        Self::X2Avic,
        Self::ExtendedIds,
        Self::Doorbell,
        Self::IsRunning,
        Self::ExtendedLvt,
        Self::VirtualNmi,
    ];
}

impl vlapic_core::Feature for Feature {
    type Obstacle = Obstacle;

    const ALL: &'static [Self] = &Self::ALL;

    #[inline]
    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avic => "avic",
            Self::X2Avic => "x2avic",
            Self::ExtendedIds => "extended-ids",
            Self::Doorbell => "doorbell",
            Self::IsRunning => "is-running",
            Self::ExtendedLvt => "extended-lvt",
            Self::VirtualNmi => "virtual-nmi",
        })
    }
}

/// What is against a feature besides the processor's not having it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// AVIC works with nested paging only.
    NestedPaging,
    /// The host's own APICs have no x2APIC mode.
    HostX2Apic,
    /// Virtual NMIs need virtual GIF.
    VirtualGif,
    /// SEV-SNP is on, and the processor cannot write to pages that the hypervisor owns and another
    /// vCPU uses (8000_001F EAX 30).
    SnpHost,
    /// The hypervisor cannot ring doorbells.
    NoDoorbell,
    /// Erratum 1235 (family 17h, and Hygon's 18h): hardware may use a stale IsRunning, and the IPI
    /// is lost.
    Erratum1235,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NestedPaging => "needs nested paging",
            Self::HostX2Apic => "needs x2APIC in the host",
            Self::VirtualGif => "needs virtual GIF",
            Self::SnpHost => "not with SEV-SNP in the host",
            Self::NoDoorbell => "no doorbell",
            Self::Erratum1235 => "erratum 1235",
        })
    }
}

#[cfg(test)]
mod tests;
