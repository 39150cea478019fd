//! The local APIC of the machine itself against the one in `vlapic-core`, without virtualization.
//!
//! ```text
//! operation    what is done to both, from a seed
//! subject      what the machine's APIC is
//! physical     the machine's APIC
//! ours         the same in vlapic-core, and those of other CPUs
//! registers    what is compared
//! difference   where they are not the same
//! deviation    the table of what is known to differ
//! pair         both, side by side
//! episode      a short sequence, shrunk where it finds something
//! ```

mod deviation;
mod difference;
mod episode;
mod operation;
mod ours;
mod pair;
mod physical;
mod random;
mod registers;
mod subject;

use vlapic_core::Mode;

use crate::machine::command_line::CommandLine;
use crate::machine::self_check::{Case, Outcome};
use crate::println;

/// Run after everything else: a machine may not find back from x2APIC mode.
pub(crate) const CASES: &[Case] = &[Case { name: "oracle-native", run }];

/// Without `operations=` on the command line.
const OPERATIONS: u64 = 20_000;

fn run(line: &CommandLine) -> Outcome {
    let operations = line.number("operations").unwrap_or(OPERATIONS);
    let seed = line.number("seed").unwrap_or(1);
    let mut mismatches = 0;
    for wanted in [Mode::XApic, Mode::X2Apic] {
        let Some(found) = episode::run(wanted, operations, seed) else { continue };
        let mode = if wanted == Mode::X2Apic { "x2apic" } else { "xapic" };
        println!(
            "HIL-ORACLE name=native mode={mode} operations={} comparisons={} mismatches={} note=",
            found.operations, found.comparisons, found.mismatches
        );
        for (row, count) in found.counts.iter().filter(|(_, count)| *count != 0) {
            let (name, reason) = (row.name(), row.reason());
            println!("HIL-DEVIATION oracle=native row={name} count={count} note={reason}");
        }
        mismatches += found.mismatches;
    }
    if mismatches == 0 { Outcome::Pass } else { Outcome::Fail("the APICs differ") }
}
