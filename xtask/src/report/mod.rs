//! What the image reported: its records parsed, collected and shown.

mod parse;
mod skip;
mod table;
mod upcall;

use serde::Serialize;

pub(crate) use parse::{
    Begin, Bug, Case, Deviation, Exits, Mismatch, Oracle, Outcome, Parsed, Record, Upcall,
    parse_line,
};
pub(crate) use skip::{Skip, print_skips};
pub(crate) use table::{print_report, print_stages, print_upcalls};
pub(crate) use upcall::{Told, Verdict, judge};

/// How a run of the image ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// The image printed `HIL-EXIT` with this code.
    Exit(u32),
    /// The machine stopped without it; what it said last.
    Died(String),
    /// Nothing was printed for this many seconds.
    Stalled(u64),
    /// The run was given up after this many seconds.
    TimedOut(u64),
}

/// All records of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) begin: Option<Begin>,
    pub(crate) listed: Vec<String>,
    pub(crate) cases: Vec<Case>,
    pub(crate) exits: Vec<Exits>,
    pub(crate) upcalls: Vec<Upcall>,
    pub(crate) bugs: Vec<Bug>,
    pub(crate) oracles: Vec<Oracle>,
    pub(crate) deviations: Vec<Deviation>,
    pub(crate) mismatches: Vec<Mismatch>,
    /// What was observed of sequences, line by line.
    #[serde(skip)]
    pub(crate) observed: Vec<String>,
    /// What is wrong with the run itself rather than with one case.
    pub(crate) faults: Vec<String>,
    /// The case that was announced and has no result yet.
    #[serde(skip)]
    running: Option<Case>,
    #[serde(skip)]
    exit: Option<u32>,
}

/// Numbers for the closing line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Report {
    pub(crate) fn new(machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..Self::default() }
    }

    /// Takes one line of the serial output; lines that are no records are the machine's own chatter.
    pub(crate) fn take_line(&mut self, line: &str) {
        match parse_line(line) {
            Parsed::Other => {}
            Parsed::Malformed(reason) => {
                self.faults.push(format!("malformed record ({reason}): {line}"))
            }
            Parsed::Record(record) => self.take(record),
        }
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Begin(begin) => {
                if self.begin.replace(begin).is_some() {
                    self.faults.push("the image started again: the machine was reset".to_owned());
                }
            }
            Record::List(case) => self.listed.push(case),
            Record::Run(case) => {
                self.close_running("the next case began without a result of this one");
                self.running = Some(case);
            }
            Record::Case(case) => {
                match self.running.take() {
                    Some(running) if !running.same_as(&case) => {
                        self.running = Some(running);
                        self.close_running("another case's result came instead");
                    }
                    _ => {}
                }
                self.cases.push(case);
            }
            Record::Exits(exits) => self.exits.push(exits),
            Record::Upcall(upcall) => self.upcalls.push(upcall),
            Record::Bug(bug) => self.bugs.push(bug),
            Record::Oracle(oracle) => self.oracles.push(oracle),
            Record::Deviation(deviation) => self.deviations.push(deviation),
            Record::Mismatch(mismatch) => self.mismatches.push(mismatch),
            Record::Log => {}
            Record::Observed(line) => self.observed.push(line),
            Record::Exit(code) => self.exit = Some(code),
        }
    }

    /// What is running now, for a progress line.
    pub(crate) fn now_running(&self) -> String {
        match &self.running {
            Some(case) => format!("{} ({} {})", case.case, case.level, case.mode),
            None if self.begin.is_none() => "booting".to_owned(),
            None => format!("{} cases done", self.cases.len()),
        }
    }

    /// The exit code, once the image has printed its last line.
    pub(crate) const fn exit_code(&self) -> Option<u32> {
        self.exit
    }

    /// Ends the run: whatever is missing now becomes a failure.
    pub(crate) fn finish(&mut self, end: &End) {
        let why = match end {
            End::Exit(_) => "the image ended before its result".to_owned(),
            End::Died(last) => format!("the machine stopped: {last}"),
            End::Stalled(seconds) => format!("silent for {seconds} s"),
            End::TimedOut(seconds) => format!("still running after {seconds} s"),
        };
        self.close_running(&why);
        if !matches!(end, End::Exit(_)) {
            self.faults.push(why);
        }
        if self.begin.is_none() {
            self.faults.push("the image printed no HIL-BEGIN: it did not boot".to_owned());
        }
        if let End::Exit(code) = end
            && *code != 0
            && self.cases.iter().all(|case| case.result != Outcome::Fail)
        {
            self.faults.push(format!("the image exited with {code} though no case failed"));
        }
        self.judge_oracles();
        for exits in &self.exits {
            if exits.expect.is_some_and(|expect| expect != exits.count) {
                self.faults.push(format!(
                    "exits of {} ({} {}): unexpected count",
                    exits.op, exits.level, exits.mode
                ));
            }
        }
    }

    /// A mismatch is a failure whatever the case that found it says, and so is one without a total.
    fn judge_oracles(&mut self) {
        let mut names: Vec<&str> = self.oracles.iter().map(|oracle| &*oracle.name).collect();
        names.extend(self.mismatches.iter().map(|mismatch| &*mismatch.oracle));
        names.sort_unstable();
        names.dedup();
        let mut faults = Vec::new();
        for name in names {
            let totals = self.oracles.iter().filter(|oracle| oracle.name == name);
            let total: u64 = totals.map(|oracle| oracle.mismatches).sum();
            let first = self.mismatches.iter().find(|mismatch| mismatch.oracle == name);
            if total != 0 || first.is_some() {
                let note = first.map_or("no details", |mismatch| &*mismatch.note);
                faults.push(format!("oracle {name}: {total} mismatches: {note}"));
            }
        }
        self.faults.extend(faults);
    }

    /// Takes what another run, which is finished, has on the same machine.
    pub(crate) fn add(&mut self, other: Self) {
        self.begin = self.begin.take().or(other.begin);
        self.listed.extend(other.listed);
        self.cases.extend(other.cases);
        self.exits.extend(other.exits);
        self.upcalls.extend(other.upcalls);
        self.bugs.extend(other.bugs);
        self.oracles.extend(other.oracles);
        self.deviations.extend(other.deviations);
        self.mismatches.extend(other.mismatches);
        self.observed.extend(other.observed);
        self.faults.extend(other.faults);
        self.exit = self.exit.max(other.exit);
    }

    fn close_running(&mut self, why: &str) {
        if let Some(mut case) = self.running.take() {
            case.result = Outcome::Fail;
            case.note = why.to_owned();
            self.cases.push(case);
        }
    }

    /// Cases count one each; so does each fault of the run.
    pub(crate) fn counts(&self) -> Counts {
        let count = |outcome| self.cases.iter().filter(|case| case.result == outcome).count();
        Counts {
            passed: count(Outcome::Pass),
            failed: count(Outcome::Fail) + self.faults.len(),
            skipped: count(Outcome::Skip),
        }
    }
}

impl Counts {
    pub(crate) const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// `N passed, N failed` and the skips if there are any.
    pub(crate) fn closing_line(self) -> String {
        let Self { passed, failed, skipped } = self;
        match skipped {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, End, Report};

    const BEGIN: &str =
        "HIL-BEGIN version=1 machine=bochs vendor=GenuineIntel cpus=2 features=vmx,vid";

    fn report(lines: &[&str], end: &End) -> Report {
        let mut report = Report::new("bochs");
        for line in lines {
            report.take_line(line);
        }
        report.finish(end);
        report
    }

    const fn counts(passed: usize, failed: usize, skipped: usize) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn whole_run() {
        let lines = [
            "SeaBIOS chatter",
            BEGIN,
            "HIL-RUN case=a level=vid mode=xapic",
            "HIL-CASE case=a level=vid mode=xapic result=pass note=",
            "HIL-CASE case=b level=posted mode=xapic result=skip note=one CPU",
            "HIL-EXIT 0",
        ];
        let report = report(&lines, &End::Exit(0));
        assert_eq!(report.counts(), counts(1, 0, 1));
        assert_eq!(report.exit_code(), Some(0));
    }

    #[test]
    fn case_that_hangs_fails_by_name() {
        let report = report(&[BEGIN, "HIL-RUN case=a level=vid mode=xapic"], &End::Stalled(9));
        assert_eq!(report.cases[0].note, "silent for 9 s");
        assert_eq!(report.counts(), counts(0, 2, 0));
    }

    #[test]
    fn run_without_result_fails() {
        let lines = [
            BEGIN,
            "HIL-RUN case=a level=vid mode=xapic",
            "HIL-RUN case=b level=vid mode=xapic",
            "HIL-CASE case=b level=vid mode=xapic result=pass note=",
        ];
        assert_eq!(report(&lines, &End::Exit(0)).counts(), counts(1, 1, 0));
    }

    #[test]
    fn result_of_another_case_does_not_hide_a_missing_one() {
        let lines = [
            BEGIN,
            "HIL-RUN case=a level=vid mode=xapic",
            "HIL-CASE case=b level=vid mode=xapic result=pass note=",
        ];
        assert_eq!(report(&lines, &End::Exit(0)).counts(), counts(1, 1, 0));
    }

    #[test]
    fn silence_and_resets_are_faults() {
        assert_eq!(report(&[], &End::Exit(0)).counts(), counts(0, 1, 0));
        assert_eq!(report(&[BEGIN, BEGIN], &End::Exit(0)).counts(), counts(0, 1, 0));
        assert_eq!(report(&[BEGIN, "HIL-CASE case=a"], &End::Exit(0)).counts(), counts(0, 1, 0));
    }

    #[test]
    fn exit_code_needs_a_reason() {
        assert_eq!(report(&[BEGIN], &End::Exit(1)).counts(), counts(0, 1, 0));
        let failing = [BEGIN, "HIL-CASE case=a level=vid mode=xapic result=fail note=x"];
        assert_eq!(report(&failing, &End::Exit(1)).counts(), counts(0, 1, 0));
    }

    #[test]
    fn exits_are_held_to_what_was_expected() {
        let wrong = [BEGIN, "HIL-EXITS op=eoi level=vid mode=xapic count=3 per=100 expect=0"];
        assert_eq!(report(&wrong, &End::Exit(0)).counts().failed, 1);
        let free = [BEGIN, "HIL-EXITS op=eoi level=vid mode=xapic count=3 per=100 expect=-"];
        assert_eq!(report(&free, &End::Exit(0)).counts().failed, 0);
    }

    #[test]
    fn mismatches_are_failures() {
        let good = "HIL-ORACLE name=a mode=xapic operations=7 comparisons=7 mismatches=0 note=";
        let bad = "HIL-ORACLE name=a mode=x2apic operations=7 comparisons=7 mismatches=2 note=";
        let detail = "HIL-MISMATCH oracle=a seed=1 step=4 note=TPR";
        assert_eq!(report(&[BEGIN, good], &End::Exit(0)).counts().failed, 0);
        assert_eq!(report(&[BEGIN, good, bad], &End::Exit(0)).counts().failed, 1);
        assert_eq!(report(&[BEGIN, good, detail], &End::Exit(0)).counts().failed, 1);
    }

    #[test]
    fn closing_line_names_skips_only_when_there_are_some() {
        assert_eq!(counts(3, 0, 0).closing_line(), "3 passed, 0 failed");
        assert_eq!(counts(3, 1, 2).closing_line(), "3 passed, 1 failed, 2 skipped");
    }
}
