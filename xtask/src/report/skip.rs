//! What was not checked, and why.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

/// One check that could not be made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Skip {
    /// The check's own name; none where it is the whole stage.
    pub(crate) name: Option<String>,
    /// At which level and in which mode, where it is made at several.
    pub(crate) setting: Option<String>,
    pub(crate) why: String,
}

impl Skip {
    pub(crate) const fn because(why: String) -> Self {
        Self { name: None, setting: None, why }
    }
}

/// A paragraph a reason: how often, and the names of what it kept from being checked, each with the number of its settings.
pub(crate) fn print_skips(out: &mut impl Write, stage: &str, skips: &[Skip]) -> Result<()> {
    const WIDTH: usize = 140;
    let options = textwrap::Options::new(WIDTH)
        .subsequent_indent("    ")
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    for (why, names) in grouped(skips.iter().map(|skip| (skip.why.as_str(), skip.name.as_deref())))
    {
        let count = names.len();
        let named = |(name, all): (Option<&str>, Vec<()>)| match all.len() {
            1 => name.map(str::to_owned),
            many => name.map(|name| format!("{name}\u{a0}({many})")),
        };
        let names = grouped(names.into_iter().map(|name| (name, ()))).into_iter();
        let names: Vec<String> = names.filter_map(named).collect();
        let line = match (count, names.is_empty()) {
            (1, true) => format!("skipped {stage}: {why}"),
            (_, true) => format!("skipped {stage}: {count}: {why}"),
            (_, false) => format!("skipped {stage}: {count}: {why}: {}", names.join(", ")),
        };
        writeln!(out, "{}", textwrap::fill(&line, &options))?;
    }
    Ok(())
}

/// What belongs to each key, the keys in the order in which they were first met.
fn grouped<K: PartialEq, V>(pairs: impl Iterator<Item = (K, V)>) -> Vec<(K, Vec<V>)> {
    let mut keys: Vec<(K, Vec<V>)> = Vec::new();
    for (key, value) in pairs {
        match keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => keys.push((key, vec![value])),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::{Skip, print_skips};

    #[test]
    fn grouped_by_reason_counted_and_named() {
        let case = |name: &str, setting: &str, why: &str| Skip {
            name: Some(name.to_owned()),
            setting: Some(setting.to_owned()),
            why: why.to_owned(),
        };
        let skips = [
            case("a", "vid xapic", "no VMX"),
            case("b", "vid xapic", "no SVM"),
            case("c", "none none", "no VMX"),
            case("a", "vid x2apic", "no VMX"),
            Skip::because("no machine".to_owned()),
        ];
        let mut out = Vec::new();
        print_skips(&mut out, "hil", &skips).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "skipped hil: 3: no VMX: a\u{a0}(2), c\nskipped hil: 1: no SVM: b\nskipped hil: no machine\n";
        assert_eq!(text, expected);
    }
}
