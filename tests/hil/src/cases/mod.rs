//! The cases that put machine and driver together: each runs at every level and in both modes where it applies.

mod avic;
mod base;
mod contrast;
mod errors;
mod guest_apic;
mod guests;
mod ipis;
mod level;
pub(crate) mod native;
mod pins;
mod posts;
mod priority;
mod record;
mod resets;
mod rows;
mod stage;
mod startup;
mod timer;
mod upcall;
mod upcall_guest;
mod waits;

use core::fmt;

pub(crate) use rows::LAST_CASES;

use crate::hypervisor::{HypervisorError, Level, avic_available};
use crate::machine::command_line::CommandLine;
use crate::println;
use crate::sequences::pages;
use crate::svm::SvmError;
use crate::vmx::VmxError;

/// How the guest reaches its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    XApic,
    X2Apic,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::XApic => "xapic",
            Self::X2Apic => "x2apic",
        }
    }
}

/// What a case is run with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) level: Level,
    pub(crate) mode: Mode,
}

/// A case by its name.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Physical CPUs it needs.
    pub(crate) cpus: usize,
    /// Where it applies; elsewhere it is not run, and not a skip either.
    pub(crate) applies: fn(Setting) -> bool,
    pub(crate) run: fn(Setting) -> Result<(), Failure>,
}

/// Why a case did not pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    Hypervisor(HypervisorError),
    /// A number that is not what it must be.
    Differs {
        what: &'static str,
        expected: u64,
        seen: u64,
    },
    Wrong(&'static str),
    Skip(&'static str),
}

impl<E: Into<HypervisorError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Hypervisor(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor(error) => write!(f, "{error}"),
            Self::Differs { what, expected, seen } => {
                write!(f, "{what}: expected {expected:#x}, seen {seen:#x}")
            }
            Self::Wrong(what) | Self::Skip(what) => f.write_str(what),
        }
    }
}

pub(crate) fn check(right: bool, what: &'static str) -> Result<(), Failure> {
    if right { Ok(()) } else { Err(Failure::Wrong(what)) }
}

pub(crate) fn equal(
    what: &'static str,
    seen: impl Into<u64>,
    expected: impl Into<u64>,
) -> Result<(), Failure> {
    let (seen, expected) = (seen.into(), expected.into());
    if seen == expected { Ok(()) } else { Err(Failure::Differs { what, expected, seen }) }
}

const GROUPS: &[&[Case]] = &[
    upcall::CASES,
    posts::CASES,
    level::CASES,
    priority::CASES,
    ipis::CASES,
    resets::CASES,
    timer::CASES,
    errors::CASES,
    waits::CASES,
    startup::CASES,
    pins::CASES,
    base::CASES,
    avic::CASES,
];

/// Runs what the command line asks for; whether nothing failed.
pub(crate) fn run(line: &CommandLine) -> bool {
    let mut right = true;
    ipis::configure(line);
    pages::configure(line);
    for case in GROUPS.iter().chain(rows::GROUPS).chain(&[pages::CASES]).copied().flatten() {
        if !line.value("case").is_none_or(|part| case.name.contains(part)) {
            continue;
        }
        if line.value("without") == Some(case.name) {
            continue;
        }
        if line.has("list") {
            println!("HIL-LIST case={}", case.name);
            continue;
        }
        for level in levels(case) {
            for mode in [Mode::XApic, Mode::X2Apic] {
                let setting = Setting { level, mode };
                if asked(line, setting) && (case.applies)(setting) {
                    right &= run_one(case, setting);
                }
            }
        }
    }
    right
}

/// The levels of a case: those that look at VT-x itself have no other.
fn levels(case: &Case) -> impl Iterator<Item = Level> {
    let svm = GROUPS.iter().copied().flatten().any(|other| other.name == case.name);
    let svm = if svm { Level::SVM.as_slice() } else { &[] };
    svm.iter().copied().chain(Level::VT_X)
}

fn asked(line: &CommandLine, setting: Setting) -> bool {
    let is = |key, name| line.value(key).is_none_or(|value| value == name);
    is("level", setting.level.name()) && is("mode", setting.mode.name())
}

/// Whether the processor has what the level is made of, where a VM alone does not tell.
fn available(setting: Setting) -> Result<(), Failure> {
    if setting.level == Level::Avic {
        avic_available(setting.mode == Mode::X2Apic)?;
    }
    Ok(())
}

fn run_one(case: &Case, setting: Setting) -> bool {
    let (level, mode) = (setting.level.name(), setting.mode.name());
    println!("HIL-RUN case={} level={level} mode={mode}", case.name);
    let result = if crate::machine::smp::cpu_count() < case.cpus {
        Err(Failure::Skip("not enough CPUs"))
    } else {
        available(setting).and_then(|()| (case.run)(setting))
    };
    let report = |result, note: &dyn fmt::Display| {
        println!(
            "HIL-CASE case={} level={level} mode={mode} result={result} note={note}",
            case.name
        );
    };
    match result {
        Ok(()) => report("pass", &""),
        Err(Failure::Skip(reason)) => report("skip", &reason),
        Err(Failure::Hypervisor(HypervisorError::Vmx(error @ VmxError::NoVmx))) => {
            report("skip", &error);
        }
        Err(Failure::Hypervisor(HypervisorError::Svm(error @ SvmError::NoSvm))) => {
            report("skip", &error);
        }
        Err(Failure::Hypervisor(
            error @ (HypervisorError::NotGranted(_) | HypervisorError::NoAvic(_)),
        )) => report("skip", &error),
        Err(failure) => {
            report("fail", &failure);
            return false;
        }
    }
    true
}
