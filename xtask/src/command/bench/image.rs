//! The drivers at work in the image: exits of each operation, and the drivers' own instructions from exit to entry.

use serde::{Deserialize, Serialize};

use crate::cli::{Machine, Selection};
use crate::command::{Context, hil};
use crate::emulator::{Emulator, Limits};
use crate::report::Report;

/// The case of the image that counts; Bochs counts a tick an instruction as long as there is one CPU.
const CASE: &str = "exits";
const CPUS: u32 = 1;

/// One operation of the guest at one level of hardware help.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Operation {
    pub(super) operation: String,
    pub(super) level: String,
    pub(super) mode: String,
    /// VM exits of one.
    pub(super) exits: f64,
    /// Instructions in the drivers, from VM exit to VM entry, for one.
    pub(super) instructions: u64,
}

/// Runs the image; `Err` says why that cannot be.
pub(super) fn run(context: &Context, limits: Limits) -> Result<Vec<Operation>, String> {
    Emulator::find(Machine::Bochs, &context.workspace).map_err(|error| format!("{error:#}"))?;
    let selection = Selection { cpus: CPUS, case: Some(CASE.to_owned()) };
    let report = hil::run_machine(context, Machine::Bochs, &selection, false, limits);
    let report = report.map_err(|error| format!("{error:#}"))?;
    let operations = read(&report);
    if operations.is_empty() {
        return Err(format!("the image reported nothing: {}", report.faults.join("; ")));
    }
    Ok(operations)
}

fn read(report: &Report) -> Vec<Operation> {
    let rows = report.exits.iter().filter_map(|row| {
        Some(Operation {
            operation: row.op.clone(),
            level: row.level.clone(),
            mode: row.mode.clone(),
            exits: row.count as f64 / row.per.max(1) as f64,
            instructions: row.work?,
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::report::Report;

    #[test]
    fn work_is_of_one_operation() {
        let mut report = Report::new("bochs");
        report
            .take_line("HIL-EXITS op=eoi level=vid mode=xapic count=32 per=16 expect=32 work=338");
        report.take_line("HIL-EXITS op=ipi level=vid mode=xapic count=32 per=16 expect=-");
        let rows = read(&report);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].exits, rows[0].instructions), (2.0, 338));
    }
}
