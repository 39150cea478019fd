//! What the hypervisor wants, what processor and host have, and what comes of it.

use core::fmt;

use crate::capability::Capabilities;

/// Grants of `wanted` what `caps` and `host` allow, with a reason for each thing refused.
#[must_use]
pub fn negotiate(wanted: Wanted, caps: &Capabilities, host: &Host) -> Grant {
    let mut grant =
        Grant { features: Features::NONE, reasons: [Reason::NotWanted; Feature::COUNT] };
    // In the order of `ALL`, in which each comes after what it depends on.
    for feature in Feature::ALL {
        match refusal(feature, wanted, caps, host, grant.features) {
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
    host: &Host,
    granted: Features,
) -> Option<Reason> {
    if !wanted.contains(feature) {
        return Some(Reason::NotWanted);
    }
    let avic = (granted.contains(Feature::Avic), Reason::NeedsAvic);
    let needs: &[(bool, Reason)] = match feature {
        Feature::Avic => &[
            (caps.avic, Reason::NotSupported),
            (caps.nested_paging && host.nested_paging, Reason::NeedsNestedPaging),
            (!host.snp || caps.snp_writes_in_use_pages, Reason::SnpHost),
        ],
        Feature::X2Avic => &[
            avic,
            (caps.x2avic, Reason::NotSupported),
            (caps.host_x2apic, Reason::NeedsHostX2Apic),
        ],
        Feature::ExtendedIds => &[
            (granted.contains(Feature::X2Avic), Reason::NeedsX2Avic),
            (caps.x2avic_extended, Reason::NotSupported),
        ],
        Feature::Doorbell => &[avic, (host.doorbell, Reason::NoDoorbell)],
        Feature::IsRunning => &[avic, (!caps.erratum_1235, Reason::Erratum1235)],
        Feature::ExtendedLvt => &[avic, (caps.extended_lvt, Reason::NotSupported)],
        Feature::VirtualNmi => {
            &[(caps.vnmi, Reason::NotSupported), (caps.vgif, Reason::NeedsVirtualGif)]
        }
    };
    needs.iter().find(|(met, _)| !met).map(|(_, reason)| *reason)
}

/// What the host is like, as its hypervisor knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The guest runs with nested paging.
    pub nested_paging: bool,
    /// SEV-SNP is on in the host.
    pub snp: bool,
    /// The hypervisor can write the doorbell MSR.
    pub doorbell: bool,
    /// What may be relied on although the manual leaves it open.
    pub trust: Trust,
}

impl Host {
    /// Nested paging, no SEV-SNP, a doorbell, and nothing trusted but the manual.
    #[must_use]
    pub const fn new() -> Self {
        Self { nested_paging: true, snp: false, doorbell: true, trust: Trust::NOTHING }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the manual is silent or at odds with practice, what the integrator vouches for. Without it
/// the driver does what is right under every reading, at a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Doorbells take 12 bits of APIC ID, as Linux has it, not 8 as the manual. Otherwise a vCPU on
    /// a CPU with an ID above 255 is told by an exit, and IPIs to it exit at the sender.
    pub wide_doorbell: bool,
    /// In x2AVIC entry 255 of the physical table is an entry like any other. Otherwise x2AVIC is
    /// off for a VM that has a vCPU with APIC ID 255.
    pub entry_255: bool,
}

impl Trust {
    /// Nothing.
    pub const NOTHING: Self = Self { wide_doorbell: false, entry_255: false };

    /// The highest host APIC ID that doorbell and physical table are used for.
    #[must_use]
    pub const fn highest_host_id(&self) -> u32 {
        if self.wide_doorbell { 0xFFF } else { 0xFF }
    }
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

    const fn bit(self) -> u8 {
        1 << self as u8
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

/// What a hypervisor asks for.
///
/// ```
/// use avic::{Feature, Wanted};
///
/// let wanted = Wanted::ALL.without(Feature::IsRunning);
/// assert!(wanted.contains(Feature::Doorbell));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(Features);

impl Wanted {
    /// Nothing: pure emulation.
    pub const NONE: Self = Self(Features::NONE);

    /// Everything.
    pub const ALL: Self = Self(Features(0x7F));

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
    /// The processor does not have it.
    NotSupported,
    /// AVIC was not granted.
    NeedsAvic,
    /// x2AVIC was not granted.
    NeedsX2Avic,
    /// AVIC works with nested paging only.
    NeedsNestedPaging,
    /// The host's own APICs have no x2APIC mode.
    NeedsHostX2Apic,
    /// Virtual NMIs need virtual GIF.
    NeedsVirtualGif,
    /// SEV-SNP is on, and the processor cannot write to pages that the hypervisor owns and another
    /// vCPU uses (8000_001F EAX 30).
    SnpHost,
    /// The hypervisor cannot ring doorbells.
    NoDoorbell,
    /// Erratum 1235 (family 17h, and Hygon's 18h): hardware may use a stale IsRunning, and the IPI
    /// is lost.
    Erratum1235,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWanted => "not asked for",
            Self::NotSupported => "not supported by the processor",
            Self::NeedsAvic => "needs AVIC",
            Self::NeedsX2Avic => "needs x2AVIC",
            Self::NeedsNestedPaging => "needs nested paging",
            Self::NeedsHostX2Apic => "needs x2APIC in the host",
            Self::NeedsVirtualGif => "needs virtual GIF",
            Self::SnpHost => "not with SEV-SNP in the host",
            Self::NoDoorbell => "no doorbell",
            Self::Erratum1235 => "erratum 1235",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    const FULL: Capabilities = Capabilities {
        avic: true,
        x2avic: true,
        x2avic_extended: true,
        extended_lvt: true,
        nested_paging: true,
        vmcb_clean: true,
        next_rip: true,
        vgif: true,
        vnmi: true,
        idle_hlt: true,
        host_x2apic: true,
        erratum_1235: false,
        snp_writes_in_use_pages: false,
        address_bits: 48,
    };

    fn refused(wanted: Wanted, caps: Capabilities, host: Host) -> Vec<(Feature, Reason)> {
        negotiate(wanted, &caps, &host).refused().collect()
    }

    #[test]
    fn all_is_all() {
        let grant = negotiate(Wanted::ALL, &FULL, &Host::new());
        assert_eq!(grant.features().iter().collect::<Vec<_>>(), Feature::ALL);
        assert_eq!(grant.refused().count(), 0);
        assert_eq!(refused(Wanted::NONE, FULL, Host::new()), []);
        let emulated = negotiate(Wanted::NONE, &FULL, &Host::new());
        assert!(emulated.features().is_empty());
        assert_eq!(emulated.reason(Feature::Avic), Some(Reason::NotWanted));
    }

    #[test]
    fn each_refusal_has_its_reason() {
        use Feature::*;
        let host = Host::new();
        let one = |caps, host| refused(Wanted::ALL, caps, host);
        assert_eq!(
            one(Capabilities { x2avic: false, ..FULL }, host),
            [(X2Avic, Reason::NotSupported), (ExtendedIds, Reason::NeedsX2Avic)]
        );
        assert_eq!(
            one(Capabilities { x2avic_extended: false, ..FULL }, host),
            [(ExtendedIds, Reason::NotSupported)]
        );
        assert_eq!(
            one(Capabilities { host_x2apic: false, ..FULL }, host)[0],
            (X2Avic, Reason::NeedsHostX2Apic)
        );
        assert_eq!(
            one(Capabilities { erratum_1235: true, ..FULL }, host),
            [(IsRunning, Reason::Erratum1235)]
        );
        assert_eq!(
            one(Capabilities { extended_lvt: false, ..FULL }, host),
            [(ExtendedLvt, Reason::NotSupported)]
        );
        assert_eq!(
            one(Capabilities { vnmi: false, ..FULL }, host),
            [(VirtualNmi, Reason::NotSupported)]
        );
        assert_eq!(
            one(Capabilities { vgif: false, ..FULL }, host),
            [(VirtualNmi, Reason::NeedsVirtualGif)]
        );
        assert_eq!(one(FULL, Host { doorbell: false, ..host }), [(Doorbell, Reason::NoDoorbell)]);
    }

    #[test]
    fn without_avic_only_virtual_nmi_is_left() {
        let host = Host::new();
        for (caps, host, reason) in [
            (Capabilities { avic: false, ..FULL }, host, Reason::NotSupported),
            (Capabilities { nested_paging: false, ..FULL }, host, Reason::NeedsNestedPaging),
            (FULL, Host { nested_paging: false, ..host }, Reason::NeedsNestedPaging),
            (FULL, Host { snp: true, ..host }, Reason::SnpHost),
        ] {
            let grant = negotiate(Wanted::ALL, &caps, &host);
            assert_eq!(grant.reason(Feature::Avic), Some(reason));
            assert_eq!(grant.reason(Feature::IsRunning), Some(Reason::NeedsAvic));
            assert_eq!(grant.features().iter().collect::<Vec<_>>(), [Feature::VirtualNmi]);
        }
        let snp = Capabilities { snp_writes_in_use_pages: true, ..FULL };
        let grant = negotiate(Wanted::ALL, &snp, &Host { snp: true, ..host });
        assert!(grant.features().contains(Feature::Avic));
    }

    #[test]
    fn a_grant_reads_well() {
        let caps = Capabilities { erratum_1235: true, vnmi: false, ..FULL };
        let wanted = Wanted::ALL.without(Feature::X2Avic).without(Feature::ExtendedIds);
        assert_eq!(
            negotiate(wanted, &caps, &Host::new()).to_string(),
            "granted: avic,doorbell,extended-lvt; refused: is-running (erratum 1235), \
             virtual-nmi (not supported by the processor)"
        );
    }
}
