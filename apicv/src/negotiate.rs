//! What the hypervisor wants, what the processor has, and what comes of it.

use core::fmt;

use crate::capability::Capabilities;

/// Grants of `wanted` what `caps` can do, with a reason for each thing refused.
///
/// Dependencies (SDM Vol. 3C 26.2.1.1, "VM-Execution Control Fields"): everything but APIC accesses
/// needs the TPR shadow; posted interrupts need virtual-interrupt delivery; IPI virtualization is
/// granted only on top of posted interrupts, because it posts into descriptors.
#[must_use]
pub fn negotiate(wanted: Wanted, caps: &Capabilities) -> Grant {
    let mut grant =
        Grant { features: Features::NONE, reasons: [Reason::NotWanted; Feature::COUNT] };
    // In the order of `ALL`, in which each comes after what it depends on.
    for feature in Feature::ALL {
        match refusal(feature, wanted, caps, grant.features) {
            None => grant.features = grant.features.with(feature),
            Some(reason) => grant.reasons[feature as usize] = reason,
        }
    }
    grant
}

fn refusal(
    feature: Feature,
    wanted: Wanted,
    caps: &Capabilities,
    granted: Features,
) -> Option<Reason> {
    if !wanted.contains(feature) {
        return Some(Reason::NotWanted);
    }
    if !caps.supports(feature) {
        return Some(Reason::NotSupported);
    }
    let needs: &[(bool, Reason)] = match feature {
        Feature::TprShadow | Feature::ApicAccess => &[],
        Feature::X2Apic => &[
            (granted.contains(Feature::TprShadow), Reason::NeedsTprShadow),
            (caps.has_msr_bitmaps(), Reason::NeedsMsrBitmaps),
        ],
        Feature::RegisterVirtualization => {
            &[(granted.contains(Feature::TprShadow), Reason::NeedsTprShadow)]
        }
        Feature::VirtualInterruptDelivery => &[
            (granted.contains(Feature::TprShadow), Reason::NeedsTprShadow),
            (caps.has_external_interrupt_exiting(), Reason::NeedsExternalInterruptExiting),
        ],
        Feature::PostedInterrupts => &[
            (
                granted.contains(Feature::VirtualInterruptDelivery),
                Reason::NeedsVirtualInterruptDelivery,
            ),
            (caps.has_acknowledge_on_exit(), Reason::NeedsAcknowledgeOnExit),
        ],
        Feature::IpiVirtualization => {
            &[(granted.contains(Feature::PostedInterrupts), Reason::NeedsPostedInterrupts)]
        }
    };
    needs.iter().find(|(met, _)| !met).map(|(_, reason)| *reason)
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

    const fn bit(self) -> u8 {
        1 << self as u8
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

/// A set of [`Feature`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(u8);

impl Features {
    /// The empty set: every register access is emulated.
    pub const NONE: Self = Self(0);

    /// Whether `feature` is in the set.
    #[inline]
    #[must_use]
    pub const fn contains(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// Whether every feature of `other` is in the set.
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set and `feature`.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }

    /// The set less `feature`.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !feature.bit())
    }

    /// The members, in the order of [`Feature::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| self.contains(*feature))
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        features.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The names, separated by commas, or `none`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, feature) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{feature}")?;
        }
        Ok(())
    }
}

/// What a hypervisor asks for. The constants are the fall-back levels, each with all that the one
/// before it has.
///
/// ```
/// use apicv::{Feature, Wanted};
///
/// let wanted = Wanted::ALL.without(Feature::IpiVirtualization);
/// assert_eq!(wanted, Wanted::POSTED_INTERRUPTS);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(Features);

impl Wanted {
    /// Nothing: pure emulation.
    pub const NONE: Self = Self(Features::NONE);

    /// Nothing but the TPR shadow.
    pub const TPR_SHADOW: Self = Self::NONE.with(Feature::TprShadow);

    /// And accesses to the register window or MSRs, of which TPR needs no exit.
    pub const APIC_ACCESS: Self = Self::TPR_SHADOW.with(Feature::ApicAccess).with(Feature::X2Apic);

    /// And registers read without exits and written with APIC-write exits.
    pub const REGISTER_VIRTUALIZATION: Self =
        Self::APIC_ACCESS.with(Feature::RegisterVirtualization);

    /// And virtual interrupts delivered and ended without exits.
    pub const VIRTUAL_INTERRUPT_DELIVERY: Self =
        Self::REGISTER_VIRTUALIZATION.with(Feature::VirtualInterruptDelivery);

    /// And interrupts posted to a running vCPU without exits.
    pub const POSTED_INTERRUPTS: Self =
        Self::VIRTUAL_INTERRUPT_DELIVERY.with(Feature::PostedInterrupts);

    /// And IPIs sent without exits: everything.
    pub const ALL: Self = Self::POSTED_INTERRUPTS.with(Feature::IpiVirtualization);

    /// Also `feature`.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0.with(feature))
    }

    /// Not `feature`. What depends on it is then refused, and says so.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0.without(feature))
    }

    /// Whether `feature` is asked for.
    #[must_use]
    pub const fn contains(self, feature: Feature) -> bool {
        self.0.contains(feature)
    }

    /// What is asked for, as a set.
    #[must_use]
    pub const fn features(self) -> Features {
        self.0
    }
}

impl From<Features> for Wanted {
    fn from(features: Features) -> Self {
        Self(features)
    }
}

/// What came of a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub(crate) features: Features,
    /// By feature; without meaning for one that is granted.
    reasons: [Reason; Feature::COUNT],
}

impl Grant {
    /// Nothing granted, nothing asked: pure emulation.
    #[must_use]
    pub const fn emulated() -> Self {
        Self { features: Features::NONE, reasons: [Reason::NotWanted; Feature::COUNT] }
    }

    /// What is granted.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Why `feature` is not granted, or `None` if it is.
    #[must_use]
    pub fn reason(&self, feature: Feature) -> Option<Reason> {
        let refused = !self.features.contains(feature);
        refused.then(|| self.reasons[feature as usize])
    }

    /// What was asked for and refused, with the reasons.
    pub fn refused(&self) -> impl Iterator<Item = (Feature, Reason)> + '_ {
        let all = Feature::ALL.into_iter();
        all.filter_map(|feature| self.reason(feature).map(|reason| (feature, reason)))
            .filter(|(_, reason)| *reason != Reason::NotWanted)
    }
}

/// One line: what is granted, then each refusal with its reason.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "granted: {}", self.features)?;
        for (index, (feature, reason)) in self.refused().enumerate() {
            f.write_str(if index == 0 { "; refused: " } else { ", " })?;
            write!(f, "{feature} ({reason})")?;
        }
        Ok(())
    }
}

/// Why a feature is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// It was not asked for.
    NotWanted,
    /// The processor has no such control.
    NotSupported,
    /// The TPR shadow was not granted.
    NeedsTprShadow,
    /// Virtual-interrupt delivery was not granted.
    NeedsVirtualInterruptDelivery,
    /// Posted interrupts were not granted.
    NeedsPostedInterrupts,
    /// The processor cannot make external interrupts exit.
    NeedsExternalInterruptExiting,
    /// The processor cannot acknowledge an interrupt on exit.
    NeedsAcknowledgeOnExit,
    /// The processor has no MSR bitmaps, without which every MSR access exits.
    NeedsMsrBitmaps,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWanted => "not asked for",
            Self::NotSupported => "not supported by the processor",
            Self::NeedsTprShadow => "needs the TPR shadow",
            Self::NeedsVirtualInterruptDelivery => "needs virtual-interrupt delivery",
            Self::NeedsPostedInterrupts => "needs posted interrupts",
            Self::NeedsExternalInterruptExiting => "needs external-interrupt exiting",
            Self::NeedsAcknowledgeOnExit => "needs acknowledge-interrupt-on-exit",
            Self::NeedsMsrBitmaps => "needs MSR bitmaps",
        })
    }
}

#[cfg(test)]
mod tests;
