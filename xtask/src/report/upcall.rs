//! Judging the upcall story.

use serde::Serialize;

use super::parse::{Delivery, Upcall, Who};

/// A row with its verdict, and the processor it was seen on where a table has several.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Told<'r> {
    pub(crate) processor: Option<&'r str>,
    pub(crate) row: &'r Upcall,
    pub(crate) verdict: &'r Verdict,
}

/// The ways in which nobody is told of the write: where a cached flag must be wrong. The last is the
/// converse: the APIC is disabled silently, and an event comes before it is enabled again.
const UNTOLD: [&str; 2] = ["silent", "silent-disable"];

/// What a row of the story amounts to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// As it must be.
    Pass(&'static str),
    Fail(String),
    /// Shown for comparison; nothing is asked of it.
    Shown,
}

/// Judges each row, and names the rows that are missing: the driver's for each of `ways` in which a
/// guest's write of SVR takes effect, and the contrast's for the silent one.
///
/// The driver must be right in every way. The contrast must be wrong where no exit tells it of the
/// write; in the other ways it is shown as it is.
pub(crate) fn judge(rows: &[Upcall], ways: &[&str]) -> (Vec<Verdict>, Vec<String>) {
    let verdicts = rows.iter().map(judge_row).collect();
    let has = |way: &str, who| rows.iter().any(|row| row.way == way && row.who == who);
    let mut missing: Vec<String> = ways
        .iter()
        .filter(|way| !has(way, Who::Driver))
        .map(|way| format!("no row of the driver for {way}"))
        .collect();
    if !has("silent", Who::Contrast) {
        missing.push("no row of the contrast for silent".to_owned());
    }
    (verdicts, missing)
}

fn judge_row(row: &Upcall) -> Verdict {
    let consistent = row.irr_clean && row.seen == row.expected;
    match (row.who, row.result) {
        (Who::Driver, Delivery::Right) if consistent => Verdict::Pass("right"),
        (Who::Driver, Delivery::Right) => {
            Verdict::Fail("called right, but the counts say otherwise".to_owned())
        }
        (Who::Driver, wrong) => Verdict::Fail(format!("must be right, is {}", word(wrong))),
        (Who::Contrast, Delivery::Right) if untold(row) => {
            Verdict::Fail("must be wrong: the check proves nothing".to_owned())
        }
        (Who::Contrast, Delivery::Right) => Verdict::Shown,
        (Who::Contrast, _) if untold(row) => Verdict::Pass("wrong, as it must be"),
        (Who::Contrast, _) => Verdict::Shown,
    }
}

fn untold(row: &Upcall) -> bool {
    UNTOLD.contains(&row.way.as_str())
}

pub(crate) const fn word(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Right => "right",
        Delivery::Stale => "stale",
        Delivery::Lost => "lost",
        Delivery::Doubled => "doubled",
    }
}

#[cfg(test)]
mod tests {
    use super::{Delivery, Upcall, Verdict, Who, judge};

    fn row(way: &str, who: Who, seen: u64, result: Delivery) -> Upcall {
        Upcall {
            way: way.to_owned(),
            who,
            mode: "xapic".to_owned(),
            irr_clean: true,
            expected: 1,
            seen,
            exits: 5,
            result,
        }
    }

    fn story() -> Vec<Upcall> {
        vec![
            row("emulated", Who::Driver, 1, Delivery::Right),
            row("apic-write", Who::Driver, 1, Delivery::Right),
            row("silent", Who::Driver, 1, Delivery::Right),
            row("emulated", Who::Contrast, 1, Delivery::Right),
            row("silent", Who::Contrast, 0, Delivery::Lost),
        ]
    }

    fn failures(rows: &[Upcall]) -> usize {
        let (verdicts, missing) = judge(rows, &["emulated", "apic-write", "silent"]);
        verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Fail(_))).count()
            + missing.len()
    }

    #[test]
    fn good_story() {
        assert_eq!(failures(&story()), 0);
    }

    #[test]
    fn driver_must_be_right() {
        let mut rows = story();
        rows[2] = row("silent", Who::Driver, 0, Delivery::Lost);
        assert_eq!(failures(&rows), 1);
    }

    #[test]
    fn word_and_counts_must_agree() {
        let mut rows = story();
        rows[0].seen = 2;
        assert_eq!(failures(&rows), 1);
        rows[1].irr_clean = false;
        assert_eq!(failures(&rows), 2);
    }

    #[test]
    fn contrast_must_be_wrong_when_the_write_is_silent() {
        let mut rows = story();
        rows[4] = row("silent", Who::Contrast, 1, Delivery::Right);
        assert_eq!(failures(&rows), 1);
    }

    #[test]
    fn contrast_must_be_wrong_when_the_apic_is_disabled_silently() {
        let mut rows = story();
        rows.push(row("silent-disable", Who::Contrast, 1, Delivery::Stale));
        assert_eq!(failures(&rows), 0);
        rows[5].result = Delivery::Right;
        assert_eq!(failures(&rows), 1);
    }

    #[test]
    fn rows_must_be_there() {
        assert_eq!(failures(&[]), 4);
        assert_eq!(failures(&story()[..4]), 1);
    }
}
