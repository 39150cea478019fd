//! The image's serial protocol: one record a line, `HIL-<KIND> key=value ...`.

use std::collections::HashMap;

use serde::Serialize;

/// What one line of serial output is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    /// No record: firmware or boot loader chatter.
    Other,
    /// Meant as a record but not readable as one; the reason.
    Malformed(String),
    Record(Record),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Record {
    Begin(Begin),
    List(String),
    /// A case about to run; its result is not known yet and stands as a failure.
    Run(Case),
    Case(Case),
    Exits(Exits),
    Upcall(Upcall),
    Bug(Bug),
    Oracle(Oracle),
    Deviation(Deviation),
    Mismatch(Mismatch),
    Log,
    /// What the image observed of a sequence, for a program that compares it: the whole line.
    Observed(String),
    Exit(u32),
}

/// The machine as the image found it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Begin {
    pub(crate) machine: String,
    pub(crate) vendor: String,
    pub(crate) cpus: u32,
    pub(crate) features: String,
}

/// One case at one CPU feature level in one APIC mode.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Case {
    pub(crate) case: String,
    pub(crate) level: String,
    pub(crate) mode: String,
    pub(crate) result: Outcome,
    pub(crate) note: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
    Skip,
}

/// VM exits taken by `per` operations.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Exits {
    pub(crate) op: String,
    pub(crate) level: String,
    pub(crate) mode: String,
    pub(crate) count: u64,
    pub(crate) per: u64,
    /// `None` where the architecture does not fix the count.
    pub(crate) expect: Option<u64>,
    /// Time-stamp ticks of the driver's own work in one operation; on Bochs with one CPU these are instructions.
    pub(crate) work: Option<u64>,
}

/// One row of the upcall story.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Upcall {
    /// How the guest's write of SVR took effect.
    pub(crate) way: String,
    pub(crate) who: Who,
    pub(crate) mode: String,
    pub(crate) irr_clean: bool,
    pub(crate) expected: u64,
    pub(crate) seen: u64,
    pub(crate) exits: u64,
    pub(crate) result: Delivery,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Who {
    Driver,
    /// The model that caches "software enabled" in a flag.
    Contrast,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Delivery {
    Right,
    Stale,
    Lost,
    Doubled,
}

/// A known emulator bug that the image detected.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Bug {
    pub(crate) name: String,
    pub(crate) note: String,
}

/// What one oracle did in one mode.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Oracle {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) operations: u64,
    pub(crate) comparisons: u64,
    pub(crate) mismatches: u64,
    pub(crate) note: String,
}

/// How often a known deviation of what an oracle asks was met.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Deviation {
    pub(crate) oracle: String,
    pub(crate) row: String,
    pub(crate) count: u64,
    pub(crate) note: String,
}

/// Something that differs and should not.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Mismatch {
    pub(crate) oracle: String,
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) note: String,
}

impl Case {
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        (&self.case, &self.level, &self.mode) == (&other.case, &other.level, &other.mode)
    }
}

/// Reads one line. Anything before `HIL-` is dropped: a serial line may carry noise at its start.
pub(crate) fn parse_line(line: &str) -> Parsed {
    let Some(start) = line.find("HIL-") else {
        return Parsed::Other;
    };
    let text = line[start..].trim_end();
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let record = match kind {
        "HIL-LOG" => return Parsed::Record(Record::Log),
        "HIL-DIGEST" | "HIL-STEP" | "HIL-WORD" => Ok(Record::Observed(text.to_owned())),
        "HIL-EXIT" => rest.trim().parse().map(Record::Exit).map_err(|_| "no exit code".to_owned()),
        "HIL-BEGIN" => Fields::read(rest).and_then(|fields| begin(&fields)),
        "HIL-LIST" => Fields::read(rest).and_then(|fields| fields.text("case")).map(Record::List),
        "HIL-RUN" => Fields::read(rest).and_then(|fields| run(&fields)).map(Record::Run),
        "HIL-CASE" => Fields::read(rest).and_then(|fields| case(&fields)).map(Record::Case),
        "HIL-EXITS" => Fields::read(rest).and_then(|fields| exits(&fields)),
        "HIL-UPCALL" => Fields::read(rest).and_then(|fields| upcall(&fields)),
        "HIL-BUG" => Fields::read(rest).and_then(|fields| bug(&fields)),
        "HIL-ORACLE" => Fields::read(rest).and_then(|fields| oracle(&fields)),
        "HIL-DEVIATION" => Fields::read(rest).and_then(|fields| deviation(&fields)),
        "HIL-MISMATCH" => Fields::read(rest).and_then(|fields| mismatch(&fields)),
        _ => Err("unknown kind".to_owned()),
    };
    record.map_or_else(Parsed::Malformed, Parsed::Record)
}

fn begin(fields: &Fields<'_>) -> Result<Record, String> {
    match fields.number("version")? {
        1 => {}
        other => return Err(format!("protocol version {other}, this program reads 1")),
    }
    let cpus = u32::try_from(fields.number("cpus")?).map_err(|_| "cpus out of range".to_owned())?;
    Ok(Record::Begin(Begin {
        machine: fields.text("machine")?,
        vendor: fields.text("vendor")?,
        cpus,
        features: fields.text("features")?,
    }))
}

fn run(fields: &Fields<'_>) -> Result<Case, String> {
    Ok(Case {
        case: fields.text("case")?,
        level: fields.text("level")?,
        mode: fields.text("mode")?,
        result: Outcome::Fail,
        note: String::new(),
    })
}

fn case(fields: &Fields<'_>) -> Result<Case, String> {
    let result = match fields.get("result")? {
        "pass" => Outcome::Pass,
        "fail" => Outcome::Fail,
        "skip" => Outcome::Skip,
        other => return Err(format!("result={other}")),
    };
    Ok(Case { result, note: fields.note(), ..run(fields)? })
}

fn exits(fields: &Fields<'_>) -> Result<Record, String> {
    let expect = match fields.get("expect")? {
        "-" => None,
        _ => Some(fields.number("expect")?),
    };
    Ok(Record::Exits(Exits {
        op: fields.text("op")?,
        level: fields.text("level")?,
        mode: fields.text("mode")?,
        count: fields.number("count")?,
        per: fields.number("per")?,
        expect,
        work: fields.get("work").ok().map(|_| fields.number("work")).transpose()?,
    }))
}

fn upcall(fields: &Fields<'_>) -> Result<Record, String> {
    let who = match fields.get("who")? {
        "driver" => Who::Driver,
        "contrast" => Who::Contrast,
        other => return Err(format!("who={other}")),
    };
    let result = match fields.get("result")? {
        "right" => Delivery::Right,
        "stale" => Delivery::Stale,
        "lost" => Delivery::Lost,
        "doubled" => Delivery::Doubled,
        other => return Err(format!("result={other}")),
    };
    let irr_clean = match fields.get("irr_clean")? {
        "yes" => true,
        "no" => false,
        other => return Err(format!("irr_clean={other}")),
    };
    Ok(Record::Upcall(Upcall {
        way: fields.text("way")?,
        who,
        mode: fields.text("mode")?,
        irr_clean,
        expected: fields.number("expected")?,
        seen: fields.number("seen")?,
        exits: fields.number("exits")?,
        result,
    }))
}

fn bug(fields: &Fields<'_>) -> Result<Record, String> {
    Ok(Record::Bug(Bug { name: fields.text("name")?, note: fields.note() }))
}

fn oracle(fields: &Fields<'_>) -> Result<Record, String> {
    Ok(Record::Oracle(Oracle {
        name: fields.text("name")?,
        mode: fields.text("mode")?,
        operations: fields.number("operations")?,
        comparisons: fields.number("comparisons")?,
        mismatches: fields.number("mismatches")?,
        note: fields.note(),
    }))
}

fn deviation(fields: &Fields<'_>) -> Result<Record, String> {
    Ok(Record::Deviation(Deviation {
        oracle: fields.text("oracle")?,
        row: fields.text("row")?,
        count: fields.number("count")?,
        note: fields.note(),
    }))
}

fn mismatch(fields: &Fields<'_>) -> Result<Record, String> {
    Ok(Record::Mismatch(Mismatch {
        oracle: fields.text("oracle")?,
        seed: fields.number("seed")?,
        step: fields.number("step")?,
        note: fields.note(),
    }))
}

/// The `key=value` words of one record; `note=` takes the rest of the line.
struct Fields<'a> {
    words: HashMap<&'a str, &'a str>,
    note: &'a str,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let (words, note) = match text.find("note=") {
            Some(at) if at == 0 || text[..at].ends_with(' ') => {
                (&text[..at], &text[at + "note=".len()..])
            }
            _ => (text, ""),
        };
        let mut fields = Self { words: HashMap::new(), note };
        for word in words.split_ascii_whitespace() {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("'{word}' is no key=value"))?;
            if fields.words.insert(key, value).is_some() {
                return Err(format!("{key} stands twice"));
            }
        }
        Ok(fields)
    }

    fn get(&self, key: &str) -> Result<&'a str, String> {
        self.words.get(key).copied().ok_or_else(|| format!("no {key}="))
    }

    fn text(&self, key: &str) -> Result<String, String> {
        self.get(key).map(str::to_owned)
    }

    fn number(&self, key: &str) -> Result<u64, String> {
        let value = self.get(key)?;
        value.parse().map_err(|_| format!("{key}={value} is no number"))
    }

    fn note(&self) -> String {
        self.note.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{Delivery, Outcome, Parsed, Record, Who, parse_line};

    #[test]
    fn chatter_is_not_a_record() {
        assert_eq!(parse_line("SeaBIOS (version 1.16)"), Parsed::Other);
        assert_eq!(parse_line(""), Parsed::Other);
    }

    #[test]
    fn case_with_note_and_noise() {
        let line = "\u{1b}[2JHIL-CASE case=spiv level=vid mode=xapic result=fail note=qual=0x0f0 not 0x0e0\r";
        let Parsed::Record(Record::Case(case)) = parse_line(line) else {
            unreachable!("a case");
        };
        assert_eq!((case.case.as_str(), case.result), ("spiv", Outcome::Fail));
        assert_eq!(case.note, "qual=0x0f0 not 0x0e0");
    }

    #[test]
    fn upcall_row() {
        let line = "HIL-UPCALL way=silent who=contrast mode=xapic irr_clean=yes expected=1 seen=0 exits=7 result=lost";
        let Parsed::Record(Record::Upcall(row)) = parse_line(line) else {
            unreachable!("an upcall");
        };
        assert_eq!(
            (row.who, row.result, row.expected, row.seen),
            (Who::Contrast, Delivery::Lost, 1, 0)
        );
        assert!(row.irr_clean);
    }

    #[test]
    fn begin_list_bug_log_and_exit() {
        let begin = "HIL-BEGIN version=1 machine=bochs vendor=GenuineIntel cpus=4 features=vmx,ept";
        assert!(matches!(parse_line(begin), Parsed::Record(Record::Begin(b)) if b.cpus == 4));
        assert_eq!(parse_line("HIL-LIST case=eoi"), Parsed::Record(Record::List("eoi".to_owned())));
        assert!(
            matches!(parse_line("HIL-BUG name=D4 note=a b"), Parsed::Record(Record::Bug(b)) if b.note == "a b")
        );
        assert_eq!(parse_line("HIL-LOG anything = at all"), Parsed::Record(Record::Log));
        let line = "HIL-DIGEST setup=shadow batch=1 digest=12";
        assert_eq!(parse_line(line), Parsed::Record(Record::Observed(line.to_owned())));
        assert_eq!(parse_line("HIL-EXIT 0"), Parsed::Record(Record::Exit(0)));
    }

    #[test]
    fn what_an_oracle_found() {
        let line =
            "HIL-ORACLE name=native mode=xapic operations=7 comparisons=70 mismatches=1 note=a b";
        assert!(
            matches!(parse_line(line), Parsed::Record(Record::Oracle(o)) if (o.operations, o.comparisons, o.mismatches) == (7, 70, 1) && o.note == "a b")
        );
        let line = "HIL-DEVIATION oracle=native row=EsrBit count=3 note=SDM 10.5.3";
        assert!(
            matches!(parse_line(line), Parsed::Record(Record::Deviation(d)) if d.row == "EsrBit" && d.count == 3)
        );
        let line = "HIL-MISMATCH oracle=native seed=18446744073709551615 step=4 note=x=1";
        assert!(
            matches!(parse_line(line), Parsed::Record(Record::Mismatch(m)) if m.seed == u64::MAX && m.note == "x=1")
        );
    }

    #[test]
    fn malformed_records_are_told() {
        for line in [
            "HIL-",
            "HIL-EXIT",
            "HIL-EXIT zero",
            "HIL-NONSENSE a=b",
            "HIL-CASE case=a level=vid mode=xapic",
            "HIL-CASE case=a level=vid mode=xapic result=maybe note=",
            "HIL-CASE case=a case=b level=vid mode=xapic result=pass note=",
            "HIL-CASE case=a level=vid stray mode=xapic result=pass note=",
            "HIL-EXITS op=eoi level=vid mode=xapic count=-1 per=1 expect=0",
            "HIL-EXITS op=eoi level=vid mode=xapic count=1 per=1",
            "HIL-UPCALL way=silent who=else mode=xapic irr_clean=yes expected=1 seen=0 exits=7 result=lost",
            "HIL-UPCALL way=silent who=driver mode=xapic irr_clean=1 expected=1 seen=0 exits=7 result=lost",
            "HIL-ORACLE name=native mode=xapic operations=7 comparisons=70 note=",
            "HIL-DEVIATION oracle=native row=A count=many note=",
            "HIL-MISMATCH oracle=native seed=1 note=",
            "HIL-BEGIN version=2 machine=bochs vendor=GenuineIntel cpus=4 features=",
            "HIL-BEGIN version=1 machine=bochs vendor=GenuineIntel cpus=99999999999 features=",
        ] {
            assert!(matches!(parse_line(line), Parsed::Malformed(_)), "{line}");
        }
    }
}
