//! What the hypervisor wants, what the processor has, and what comes of it.

use core::fmt;

use crate::capability::Capabilities;

/// A set of [`Feature`]s.
pub type Features = vlapic_core::Features<Feature>;

/// What a hypervisor asks for.
///
/// [`up_to`](vlapic_core::Wanted::up_to) names the fall-back levels, each with all that the one before it
/// has:
///
/// | up to | is |
/// |---|---|
/// | [`Feature::TprShadow`] | nothing but the TPR shadow |
/// | [`Feature::X2Apic`] | and accesses to the register window or MSRs, of which TPR needs no exit |
/// | [`Feature::RegisterVirtualization`] | and registers read without exits and written with APIC-write exits |
/// | [`Feature::VirtualInterruptDelivery`] | and virtual interrupts delivered and ended without exits |
/// | [`Feature::PostedInterrupts`] | and interrupts posted to a running vCPU without exits |
/// | [`Feature::IpiVirtualization`] | and IPIs sent without exits: everything |
///
/// ```
/// use apicv::{Feature, Wanted};
///
/// let wanted = Wanted::ALL.without(Feature::IpiVirtualization);
/// assert_eq!(wanted, Wanted::up_to(Feature::PostedInterrupts));
/// ```
pub type Wanted = vlapic_core::Wanted<Feature>;

/// What came of a negotiation.
pub type Grant = vlapic_core::Grant<Feature>;

/// Why a feature is not granted.
pub type Reason = vlapic_core::Reason<Feature>;

/// Grants of `wanted` what `caps` can do, with a reason for each thing refused.
///
/// Dependencies (SDM Vol. 3C 26.2.1.1, "VM-Execution Control Fields"): everything but APIC accesses
/// needs the TPR shadow; posted interrupts need virtual-interrupt delivery; IPI virtualization is
/// granted only on top of posted interrupts, because it posts into descriptors.
#[must_use]
pub fn negotiate(wanted: Wanted, caps: &Capabilities) -> Grant {
    Grant::negotiate(wanted, |feature, granted| refusal(feature, caps, granted))
}

fn refusal(feature: Feature, caps: &Capabilities, granted: Features) -> Option<Reason> {
    if !caps.supports(feature) {
        return Some(Reason::NotSupported);
    }
    let needs = |other| (granted.contains(other), Reason::Needs(other));
    let unless = |met, obstacle| (met, Reason::Obstacle(obstacle));
    let met = (true, Reason::NotWanted);
    let conditions = match feature {
        Feature::TprShadow | Feature::ApicAccess => [met, met],
        Feature::X2Apic => {
            [needs(Feature::TprShadow), unless(caps.has_msr_bitmaps(), Obstacle::MsrBitmaps)]
        }
        Feature::RegisterVirtualization => [needs(Feature::TprShadow), met],
        Feature::VirtualInterruptDelivery => [
            needs(Feature::TprShadow),
            unless(caps.has_external_interrupt_exiting(), Obstacle::ExternalInterruptExiting),
        ],
        Feature::PostedInterrupts => [
            needs(Feature::VirtualInterruptDelivery),
            unless(caps.has_acknowledge_on_exit(), Obstacle::AcknowledgeOnExit),
        ],
        Feature::IpiVirtualization => [needs(Feature::PostedInterrupts), met],
    };
    conditions.into_iter().find(|(met, _)| !met).map(|(_, reason)| reason)
}

/// One thing that the processor can do for a vCPU's local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Feature {
    /// "Use TPR shadow": CR8 and TPR live in the virtual-APIC page.
    TprShadow,
    /// "Virtualize APIC accesses": the register window of xAPIC mode.
    ApicAccess,
    /// "Virtualize x2APIC mode": the register MSRs of x2APIC mode.
    X2Apic,
    /// "APIC-register virtualization".
    RegisterVirtualization,
    /// "Virtual-interrupt delivery".
    VirtualInterruptDelivery,
    /// "Process posted interrupts".
    PostedInterrupts,
    /// "IPI virtualization".
    IpiVirtualization,
}

impl Feature {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All, each after those that it depends on.
    pub const ALL: [Self; Self::COUNT] = [
        Self::TprShadow,
        Self::ApicAccess,
        Self::X2Apic,
        Self::RegisterVirtualization,
        Self::VirtualInterruptDelivery,
        Self::PostedInterrupts,
        Self::IpiVirtualization,
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
            Self::TprShadow => "tpr-shadow",
            Self::ApicAccess => "apic-access",
            Self::X2Apic => "x2apic",
            Self::RegisterVirtualization => "register-virtualization",
            Self::VirtualInterruptDelivery => "virtual-interrupt-delivery",
            Self::PostedInterrupts => "posted-interrupts",
            Self::IpiVirtualization => "ipi-virtualization",
        })
    }
}

/// What the processor lacks besides the feature itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// It cannot make external interrupts exit.
    ExternalInterruptExiting,
    /// It cannot acknowledge an interrupt on exit.
    AcknowledgeOnExit,
    /// It has no MSR bitmaps, without which every MSR access exits.
    MsrBitmaps,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExternalInterruptExiting => "needs external-interrupt exiting",
            Self::AcknowledgeOnExit => "needs acknowledge-interrupt-on-exit",
            Self::MsrBitmaps => "needs MSR bitmaps",
        })
    }
}

#[cfg(test)]
mod tests;
