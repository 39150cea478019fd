//! `cargo xtask codegen`.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Context, Failed, Verdict};
use crate::cli::CodegenArgs;
use crate::machine_code::{
    CRATES, Graph, Library, SNAPSHOTS, Snapshot, State, build, cannot_be_read, compiler, listing,
};

/// What the machine code shows.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    compiler: String,
    entries: Vec<Entry>,
    crates: Vec<CrateText>,
    expected: Vec<Expected>,
}

/// One entry point.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// Bytes of its own code, and of all that it can reach.
    own: u64,
    reached: u64,
    /// Bytes of stack, callees included; none if that has no bound that can be seen.
    stack: Option<u64>,
    /// Ways to a panic, formatter or allocator.
    forbidden: Vec<String>,
}

/// The code under all entry points of a crate.
#[derive(Debug, Serialize)]
struct CrateText {
    name: &'static str,
    bytes: u64,
    functions: usize,
    deepest_stack: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Expected {
    name: String,
    difference: Option<String>,
    skipped: Option<String>,
}

pub(crate) fn run(context: &Context, arguments: &CodegenArgs) -> Result<Verdict> {
    if let Some(why) = cannot_be_read() {
        bail!(why);
    }
    if arguments.bless {
        return bless(context);
    }
    let findings = look(context)?;
    context.print(&findings, |out| write_findings(out, &findings))?;
    Ok(if findings.failures().is_empty() { Verdict::Passed } else { Verdict::Failed })
}

fn bless(context: &Context) -> Result<Verdict> {
    let library = Library::read(&build(&context.workspace)?)?;
    let compiler = compiler()?;
    let mut blessed = Vec::new();
    for (name, address) in exports(&library, SNAPSHOTS) {
        snapshot(context, name).bless(&compiler, &listing(&library, address))?;
        blessed.push(name);
    }
    context.print(&blessed, |out| {
        Ok(writeln!(out, "expected from now on: {}", blessed.join(", "))?)
    })?;
    Ok(Verdict::Passed)
}

/// Builds the library and reads it.
pub(crate) fn look(context: &Context) -> Result<Findings> {
    let library = Library::read(&build(&context.workspace)?)?;
    let graph = Graph::new(&library);
    let compiler = compiler()?;
    let mut findings =
        Findings { compiler, entries: Vec::new(), crates: Vec::new(), expected: Vec::new() };
    for name in CRATES {
        findings.add_crate(&library, &graph, name);
    }
    if findings.entries.is_empty() {
        bail!(Failed("the library has no entry points".to_owned()));
    }
    for (name, address) in exports(&library, SNAPSHOTS) {
        let state =
            snapshot(context, name).compare(&findings.compiler, &listing(&library, address));
        findings.expected.push(Expected::new(name, state));
    }
    Ok(findings)
}

fn exports<'l>(library: &'l Library, prefix: &str) -> impl Iterator<Item = (&'l str, u64)> {
    library
        .exports
        .iter()
        .filter(move |(name, _)| name.starts_with(prefix))
        .map(|(name, address)| (name.as_str(), *address))
}

fn snapshot(context: &Context, name: &str) -> Snapshot {
    let folder = context.workspace.root.join("tests/codegen/expected");
    Snapshot::new(&folder, name.trim_start_matches(SNAPSHOTS))
}

impl Findings {
    fn add_crate(&mut self, library: &Library, graph: &Graph<'_>, name: &'static str) {
        let bytes = |functions: &BTreeSet<u64>| -> u64 {
            functions
                .iter()
                .filter_map(|address| library.functions.get(address))
                .map(|it| it.bytes)
                .sum()
        };
        let mut all = BTreeSet::new();
        let first = self.entries.len();
        for (entry, address) in exports(library, &format!("{name}_")) {
            let reach = graph.reach(address);
            self.entries.push(Entry {
                name: entry.to_owned(),
                own: bytes(&BTreeSet::from([address])),
                reached: bytes(&reach.functions),
                stack: graph.stack(address),
                forbidden: reach.forbidden,
            });
            all.extend(reach.functions);
        }
        let stacks = self.entries[first..].iter().map(|entry| entry.stack);
        self.crates.push(CrateText {
            name,
            bytes: bytes(&all),
            functions: all.len(),
            deepest_stack: stacks.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
        });
    }

    /// How many things are checked.
    pub(crate) fn checks(&self) -> usize {
        self.entries.len() + self.expected.len()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        let entries = self.entries.iter().filter_map(Entry::failure);
        entries.chain(self.expected.iter().filter_map(|it| it.difference.clone())).collect()
    }

    pub(crate) fn skips(&self) -> Vec<String> {
        self.expected.iter().filter_map(|it| it.skipped.clone()).collect()
    }
}

impl Entry {
    fn failure(&self) -> Option<String> {
        if !self.forbidden.is_empty() {
            return Some(format!("{} can reach {}", self.name, self.forbidden.join(", and ")));
        }
        self.stack.is_none().then(|| format!("the stack of {} has no bound", self.name))
    }
}

impl Expected {
    fn new(name: &str, state: State) -> Self {
        let (difference, skipped) = match state {
            State::Same => (None, None),
            State::Differs(lines) => {
                let hint = "if that is meant: cargo xtask codegen --bless";
                (Some(format!("{lines}({hint})")), None)
            }
            State::Missing => {
                (Some(format!("{name} has no expected code: cargo xtask codegen --bless")), None)
            }
            State::OtherCompiler(which) => {
                (None, Some(format!("{name}: its expected code is from {which}")))
            }
        };
        Self { name: name.to_owned(), difference, skipped }
    }
}

fn write_findings(out: &mut impl Write, findings: &Findings) -> Result<()> {
    writeln!(out, "{}, release profile", findings.compiler)?;
    let bytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| bytes.to_string());
    let mut table = table(&["entry point", "own bytes", "with callees", "stack bytes"]);
    for entry in &findings.entries {
        let (own, reached) = (entry.own.to_string(), entry.reached.to_string());
        table.add_row([&*entry.name, &own, &reached, &bytes(entry.stack)]);
    }
    writeln!(out, "{table}")?;
    let mut table = self::table(&["crate", "bytes of code", "functions", "deepest stack"]);
    for text in &findings.crates {
        let (size, functions) = (text.bytes.to_string(), text.functions.to_string());
        table.add_row([text.name, &size, &functions, &bytes(text.deepest_stack)]);
    }
    writeln!(out, "{table}")?;
    for skip in findings.skips() {
        writeln!(out, "skipped {skip}")?;
    }
    for failure in findings.failures() {
        writeln!(out, "FAILED {failure}")?;
    }
    let failed = findings.failures().len();
    let skipped = findings.skips().len();
    let passed = findings.checks() - failed - skipped;
    Ok(writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?)
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(heads);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
