//! Seeded sequences of guest and host operations under every set of APIC controls, with no driver: what the processor does
//! is recorded, for a comparison with the model of it.
//!
//! One CPU does it all, its interrupts off but between two batches, so that everything has its place in the sequence. For
//! each batch one line tells the digest of what was observed; asked for one batch, it prints each step.

mod guest;
pub(crate) mod pages;
mod perform;
mod script;
mod shared;

use vlapic_sequences::vmx::{STEPS, Setup};

use crate::machine::command_line::CommandLine;
use crate::machine::self_check::{Case, Outcome};
use crate::vmx::VmxError;
use crate::{log, println};

pub(crate) const CASES: &[Case] = &[Case { name: "apicv-model", run }];

/// The operations of a run that is not told how many to make: one batch of each set of controls.
const OPERATIONS: u64 = (STEPS * Setup::ALL.len()) as u64;

fn run(line: &CommandLine) -> Outcome {
    let seed = line.number("seed").unwrap_or(1);
    let operations = line.number("operations").unwrap_or(OPERATIONS);
    let setups =
        Setup::ALL.iter().filter(|setup| line.value("setup").is_none_or(|name| name == setup.name));
    let batches = operations.div_ceil((STEPS * Setup::ALL.len()) as u64);
    let asked = line.number("batch");
    let numbers = asked.map_or(0..batches, |number| number..number + 1);
    for &setup in setups {
        match script::run(seed, setup, numbers.clone(), asked.is_some()) {
            Ok(()) => {}
            Err(script::Failure::Vmx(VmxError::NoVmx)) => return Outcome::Skip("no VMX"),
            Err(script::Failure::Vmx(VmxError::NoEpt)) => return Outcome::Skip("no EPT"),
            Err(script::Failure::Vmx(VmxError::LockedByFirmware)) => {
                return Outcome::Skip("VMX is locked off");
            }
            Err(script::Failure::Vmx(VmxError::ControlsMissing { missing, .. })) => {
                println!("HIL-LOG setup {}: no controls {missing:#x}", setup.name);
            }
            Err(failure) => {
                log!("setup {}: {failure:?}", setup.name);
                return Outcome::Fail("the script failed, see the log");
            }
        }
    }
    Outcome::Pass
}
