//! A guest under the driver against plain emulation: the same sequence, the same page after each step, the same values
//! read, the same interrupts in the same order.
//!
//! ```text
//! guest       the guest carries out batches and keeps what it sees: it can read its page without an exit
//! host        the host's part of a batch, and the comparison after it
//! remote      another CPU that posts while the guest runs
//! reference   the same vCPU in plain emulation, with no processor to help
//! deviation   what the processor does otherwise, for which no driver can be blamed
//! ```

mod deviation;
mod guest;
mod host;
mod reference;
mod remote;

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::LocalApic;
use vlapic_sequences::apic::STEPS;

use crate::cases::{Case, Failure, Mode, Setting, equal};
use crate::hypervisor::{Config, VirtualMachine};
use crate::machine::command_line::CommandLine;
use crate::println;

pub(crate) const CASES: &[Case] =
    &[Case { name: "apicv-page", cpus: 1, applies: |at| !at.level.is_svm(), run }];

/// The operations of a run that is not told how many to make.
const OPERATIONS: u64 = 10_000;

static ASKED_OPERATIONS: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);

/// Takes `operations=` and `seed=`: operations of all levels and modes together.
pub(crate) fn configure(line: &CommandLine) {
    ASKED_OPERATIONS.store(line.number("operations").unwrap_or(OPERATIONS), Ordering::Relaxed);
    SEED.store(line.number("seed").unwrap_or(1), Ordering::Relaxed);
}

fn run(setting: Setting) -> Result<(), Failure> {
    const LEVELS_AND_MODES: u64 = 10;
    let seed = SEED.load(Ordering::Relaxed);
    let batches =
        ASKED_OPERATIONS.load(Ordering::Relaxed).div_ceil(LEVELS_AND_MODES * STEPS as u64).max(1);
    let config = Config { on_call: host::on_call, ..Config::new(setting.level, 2) };
    let machine = VirtualMachine::new(config)?;
    // The other vCPU only receives: its APIC is there, and nothing runs on it.
    drop(LocalApic::new(&machine.slots[1], true));
    host::begin(machine, setting, seed, batches)?;
    machine.set_program(0, guest::program, u64::from(setting.mode == Mode::X2Apic));
    remote::begin(machine);
    let result = machine.run_here(0);
    remote::end();
    equal("line of the program", result?, 0u64)?;
    let summary = host::end();
    let (level, mode) = (setting.level.name(), setting.mode.name());
    println!(
        "HIL-ORACLE name=apicv-page/{level} mode={mode} operations={} comparisons={} mismatches={} note={} interrupts",
        summary.operations, summary.comparisons, summary.mismatches, summary.taken
    );
    for (row, count) in summary.deviations.iter() {
        println!(
            "HIL-DEVIATION oracle=apicv-page/{level} row={row:?} count={count} note={}",
            row.reason()
        );
    }
    equal("mismatches", summary.mismatches, 0u64)
}
