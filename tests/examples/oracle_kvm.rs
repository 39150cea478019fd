//! Runs the kernel's local APIC against ours: `oracle_kvm OPERATIONS SEED`.

use std::process::ExitCode;

use vlapic_tests::oracle::kvm::{self, Unavailable};

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (operations, seed) = match (numbers.next(), numbers.next()) {
        (None, _) => (100_000, 1),
        (Some(Ok(operations)), None) => (operations, 1),
        (Some(Ok(operations)), Some(Ok(seed))) => (operations, seed),
        _ => {
            eprintln!("usage: oracle_kvm [OPERATIONS [SEED]]");
            return ExitCode::from(2);
        }
    };
    let report = match kvm::run(operations, seed) {
        Ok(report) => report,
        Err(error @ Unavailable::NoKvm(_)) => {
            println!("SKIPPED {error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            println!("FAILED {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("operations {}", report.operations);
    println!("comparisons {}", report.comparisons);
    eprintln!("by the guest: {}; rounds repeated: {}", report.by_guest, report.repeated);
    for (row, count) in report.deviations.iter() {
        println!("deviation {row:?} {count} {}", row.reason());
    }
    match report.mismatch {
        None => {
            println!("mismatches 0");
            ExitCode::SUCCESS
        }
        Some(mismatch) => {
            println!("mismatches 1");
            println!("  {}", mismatch.vm);
            for operation in &mismatch.operations {
                println!("  {operation:x?}");
            }
            println!("  {:#x?}", mismatch.difference);
            ExitCode::FAILURE
        }
    }
}
