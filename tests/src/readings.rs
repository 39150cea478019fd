//! What the manuals leave open, as the silicon models have it: every knob of a model turned to each of its other values.

/// One knob turned to another value than the default.
#[derive(Debug, Clone, Copy)]
pub struct Reading<K> {
    /// What the processor does.
    pub name: &'static str,
    /// The field of the model's knobs that is turned.
    pub knob: &'static str,
    /// What software can do about it.
    pub kind: Kind,
    /// The default with this knob turned.
    pub knobs: K,
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
                    kind: $crate::readings::Kind::$kind,
                    knobs: Knobs { $knob: $value, ..default },
                },)+)*]
            }

            /// Every other reading of the manual, one at a time.
            #[must_use]
            pub fn readings() -> Vec<Reading> {
                Self::readings_of($crate::readings::Kind::Open)
            }

            /// The readings of one kind.
            #[must_use]
            pub fn readings_of(kind: $crate::readings::Kind) -> Vec<Reading> {
                let mut readings = Self::all_readings();
                readings.retain(|reading| reading.kind == kind);
                readings
            }
        }

        #[cfg(test)]
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
    };
}

pub(crate) use readings;
