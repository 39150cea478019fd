//! What a processor can do for a local APIC, what of it is wanted, and what is granted: the same for
//! every vendor, over the vendor's own list of features.

use core::fmt;
use core::marker::PhantomData;

/// One thing that a processor can do for a vCPU's local APIC. Each vendor's crate has its list.
pub trait Feature: Copy + Eq + fmt::Debug + fmt::Display + 'static {
    /// What besides the processor and other features may stand against one.
    type Obstacle: Copy + Eq + fmt::Debug + fmt::Display + 'static;

    /// All, each after those that it depends on; at most [`MOST_FEATURES`].
    const ALL: &'static [Self];

    /// The feature's place in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

/// How many features a vendor may have.
pub const MOST_FEATURES: usize = 16;

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Features<F>(u16, PhantomData<F>);

impl<F: Feature> Features<F> {
    /// The empty set: every register access is emulated.
    pub const NONE: Self = Self(0, PhantomData);

    /// Every feature.
    pub const ALL: Self = {
        assert!(F::ALL.len() <= MOST_FEATURES);
        Self(((1_u32 << F::ALL.len()) - 1) as u16, PhantomData)
    };

    /// `feature` and every one that stands before it in [`Feature::ALL`].
    #[must_use]
    pub fn up_to(feature: F) -> Self {
        let bit = bit(feature);
        Self(bit | bit.wrapping_sub(1), PhantomData)
    }

    /// Whether `feature` is in the set.
    #[inline]
    #[must_use]
    pub fn contains(self, feature: F) -> bool {
        self.0 & bit(feature) != 0
    }

    /// Whether every feature of `other` is in the set.
    #[inline]
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set and `feature`.
    #[inline]
    #[must_use]
    pub fn with(self, feature: F) -> Self {
        Self(self.0 | bit(feature), PhantomData)
    }

    /// The set less `feature`.
    #[inline]
    #[must_use]
    pub fn without(self, feature: F) -> Self {
        Self(self.0 & !bit(feature), PhantomData)
    }

    /// What is in both sets.
    #[inline]
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0, PhantomData)
    }

    /// The members, in the order of [`Feature::ALL`].
    pub fn iter(self) -> impl Iterator<Item = F> {
        F::ALL.iter().copied().filter(move |&feature| self.contains(feature))
    }
}

#[inline]
fn bit<F: Feature>(feature: F) -> u16 {
    1_u16.wrapping_shl(feature.index() as u32)
}

impl<F: Feature> FromIterator<F> for Features<F> {
    fn from_iter<I: IntoIterator<Item = F>>(features: I) -> Self {
        features.into_iter().fold(Self::NONE, Self::with)
    }
}

impl<F: Feature> fmt::Debug for Features<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The names, separated by commas, or `none`.
impl<F: Feature> fmt::Display for Features<F> {
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

/// What a hypervisor asks for. Less than what it asks for may be granted, never more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<F: Feature>(Features<F>);

impl<F: Feature> Wanted<F> {
    /// Nothing: pure emulation.
    pub const NONE: Self = Self(Features::NONE);

    /// Everything.
    pub const ALL: Self = Self(Features::ALL);

    /// A level of help: `feature` and every one that stands before it in [`Feature::ALL`].
    #[must_use]
    pub fn up_to(feature: F) -> Self {
        Self(Features::up_to(feature))
    }

    /// Also `feature`.
    #[must_use]
    pub fn with(self, feature: F) -> Self {
        Self(self.0.with(feature))
    }

    /// Not `feature`. What depends on it is then refused, and says so.
    #[must_use]
    pub fn without(self, feature: F) -> Self {
        Self(self.0.without(feature))
    }

    /// Whether `feature` is asked for.
    #[must_use]
    pub fn contains(self, feature: F) -> bool {
        self.0.contains(feature)
    }

    /// What is asked for, as a set.
    #[must_use]
    pub const fn features(self) -> Features<F> {
        self.0
    }
}

impl<F: Feature> From<Features<F>> for Wanted<F> {
    fn from(features: Features<F>) -> Self {
        Self(features)
    }
}

/// What came of a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<F: Feature> {
    features: Features<F>,
    /// By feature; without meaning for one that is granted.
    reasons: [Reason<F>; MOST_FEATURES],
}

impl<F: Feature> Grant<F> {
    /// Nothing granted, nothing asked: pure emulation.
    #[must_use]
    pub const fn emulated() -> Self {
        Self { features: Features::NONE, reasons: [Reason::NotWanted; MOST_FEATURES] }
    }

    /// Grants of `wanted` what `refusal` has nothing against. It is asked for one feature after the
    /// other, in the order of [`Feature::ALL`], and told what has been granted so far.
    #[must_use]
    pub fn negotiate(
        wanted: Wanted<F>,
        refusal: impl Fn(F, Features<F>) -> Option<Reason<F>>,
    ) -> Self {
        let mut grant = Self::emulated();
        for (&feature, reason) in F::ALL.iter().zip(&mut grant.reasons) {
            if !wanted.contains(feature) {
                continue;
            }
            match refusal(feature, grant.features) {
                None => grant.features = grant.features.with(feature),
                Some(refused) => *reason = refused,
            }
        }
        grant
    }

    /// What is granted.
    #[must_use]
    pub const fn features(&self) -> Features<F> {
        self.features
    }

    /// Why `feature` is not granted, or `None` if it is.
    #[must_use]
    pub fn reason(&self, feature: F) -> Option<Reason<F>> {
        let granted = self.features.contains(feature);
        self.reasons.get(feature.index()).copied().filter(|_| !granted)
    }

    /// What was asked for and refused, with the reasons.
    pub fn refused(&self) -> impl Iterator<Item = (F, Reason<F>)> + '_ {
        let reason = |&feature: &F| self.reason(feature).map(|reason| (feature, reason));
        F::ALL.iter().filter_map(reason).filter(|(_, reason)| *reason != Reason::NotWanted)
    }
}

/// One line: what is granted, then each refusal with its reason.
impl<F: Feature> fmt::Display for Grant<F> {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason<F: Feature> {
    /// It was not asked for.
    NotWanted,
    /// The processor does not have it.
    NotSupported,
    /// This other feature was not granted.
    Needs(F),
    /// Something else is against it.
    Obstacle(F::Obstacle),
}

impl<F: Feature> fmt::Display for Reason<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => f.write_str("not asked for"),
            Self::NotSupported => f.write_str("not supported by the processor"),
            Self::Needs(feature) => write!(f, "needs {feature}"),
            Self::Obstacle(obstacle) => obstacle.fmt(f),
        }
    }
}

/// The features of plain emulation: there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFeature {}

impl Feature for NoFeature {
    type Obstacle = Self;

    const ALL: &'static [Self] = &[];

    fn index(self) -> usize {
        match self {}
    }
}

impl fmt::Display for NoFeature {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

#[cfg(test)]
mod tests;
