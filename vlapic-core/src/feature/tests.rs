use std::string::ToString;
use std::vec::Vec;

use super::*;

/// Roof stands on walls, walls on ground; the paint needs dry weather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum House {
    Ground,
    Walls,
    Roof,
    Paint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rain;

impl fmt::Display for Rain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it rains")
    }
}

impl fmt::Display for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["ground", "walls", "roof", "paint"][*self as usize])
    }
}

impl Feature for House {
    type Obstacle = Rain;

    const ALL: &'static [Self] = &[Self::Ground, Self::Walls, Self::Roof, Self::Paint];

    fn index(self) -> usize {
        self as usize
    }
}

fn build(wanted: Wanted<House>) -> Grant<House> {
    Grant::negotiate(wanted, |feature, granted| match feature {
        House::Ground => None,
        House::Walls if granted.contains(House::Ground) => None,
        House::Walls => Some(Reason::Needs(House::Ground)),
        House::Roof => Some(Reason::NotSupported),
        House::Paint => Some(Reason::Obstacle(Rain)),
    })
}

#[test]
fn sets() {
    let set: Features<House> = [House::Walls, House::Paint].into_iter().collect();
    assert_eq!(set.to_string(), "walls,paint");
    assert_eq!(std::format!("{set:?}"), "{Walls, Paint}");
    assert_eq!(set.iter().collect::<Vec<_>>(), [House::Walls, House::Paint]);
    assert!(set.contains(House::Paint) && !set.contains(House::Ground));
    assert!(Features::ALL.contains_all(set) && !set.contains_all(Features::ALL));
    assert_eq!(Features::<House>::ALL.iter().collect::<Vec<_>>(), House::ALL);
    assert_eq!(set.without(House::Walls).with(House::Roof).to_string(), "roof,paint");
    assert_eq!(Features::up_to(House::Roof), Features::ALL.without(House::Paint));
    assert_eq!(Features::up_to(House::Roof).intersection(set).to_string(), "walls");
    assert!(Features::<House>::NONE.is_empty() && !set.is_empty());
    assert_eq!(Features::<House>::NONE.to_string(), "none");
}

#[test]
fn grants_and_reasons() {
    let all = build(Wanted::ALL);
    assert_eq!(
        all.to_string(),
        "granted: ground,walls; refused: roof (not supported by the processor), paint (it rains)"
    );
    assert_eq!(all.reason(House::Ground), None);
    assert_eq!(all.reason(House::Paint), Some(Reason::Obstacle(Rain)));
    let floating = build(Wanted::up_to(House::Walls).without(House::Ground));
    assert_eq!(floating.to_string(), "granted: none; refused: walls (needs ground)");
    assert_eq!(floating.reason(House::Paint), Some(Reason::NotWanted), "which is no refusal");
    assert_eq!(build(Wanted::NONE), Grant::emulated());
}

#[test]
fn plain_emulation_has_none() {
    assert_eq!(Wanted::<NoFeature>::ALL, Wanted::NONE);
    let grant = Grant::<NoFeature>::negotiate(Wanted::ALL, |feature, _| match feature {});
    assert_eq!(grant.to_string(), "granted: none");
}

/// A list as long as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered(usize);

impl fmt::Display for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Feature for Numbered {
    type Obstacle = Rain;

    const ALL: &'static [Self] = &{
        let mut all = [Self(0); MOST_FEATURES];
        let mut index = 0;
        while index < MOST_FEATURES {
            all[index] = Self(index);
            index += 1;
        }
        all
    };

    fn index(self) -> usize {
        self.0
    }
}

#[test]
fn sixteen_features_fit() {
    assert_eq!(Features::<Numbered>::ALL.iter().count(), MOST_FEATURES);
    assert_eq!(Features::up_to(Numbered(15)), Features::ALL);
    let odd = Grant::negotiate(Wanted::ALL, |feature: Numbered, _| {
        feature.0.is_multiple_of(2).then_some(Reason::NotSupported)
    });
    assert_eq!(odd.features().to_string(), "1,3,5,7,9,11,13,15");
}
