//! The APICv model against what the image observed: `oracle_apicv LINES SEED [SETUP BATCH]`, where
//! LINES is a file with the image's lines.
//!
//! With a batch named, the lines are those of its steps; otherwise they are the digests of many.

use std::process::ExitCode;

use vlapic_sequences::vmx::{Batch, Setup};
use vlapic_tests::oracle::apicv::{Deviation, compare_digests, compare_steps};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let text = match words.first().map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) => {
            eprintln!("the image's lines: {error}");
            return ExitCode::from(2);
        }
        None => return usage(),
    };
    match words.iter().skip(1).map(String::as_str).collect::<Vec<_>>()[..] {
        [seed] => seed.parse().map_or_else(|_| usage(), |seed| digests(seed, &text)),
        [seed, name, number] => {
            let setup = Setup::ALL.into_iter().find(|setup| setup.name == name);
            match (seed.parse(), setup, number.parse()) {
                (Ok(seed), Some(setup), Ok(number)) => {
                    steps(&Batch::new(seed, setup, number), &text)
                }
                _ => usage(),
            }
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: oracle_apicv LINES SEED [SETUP BATCH]");
    ExitCode::from(2)
}

fn digests(seed: u64, text: &str) -> ExitCode {
    let comparison = compare_digests(seed, text.lines());
    println!("operations {}", comparison.operations);
    // Each operation's answer, page, interrupts and exits.
    println!("comparisons {}", comparison.operations * 4);
    println!("taken {}", comparison.taken);
    println!("exits {}", comparison.exits);
    for deviation in Deviation::ALL {
        if let Some(count) = comparison.deviations.get(&deviation) {
            println!("deviation {deviation:?} {count} {}", deviation.reason());
        }
    }
    println!("mismatches {}", comparison.mismatches.len() + comparison.strange.len());
    for line in comparison.strange.iter().take(3) {
        println!(" not a batch of seed {seed}: {line}");
    }
    for mismatch in comparison.mismatches.iter().take(10) {
        println!(" batch {} {}", mismatch.setup, mismatch.batch);
    }
    ExitCode::SUCCESS
}

fn steps(batch: &Batch, text: &str) -> ExitCode {
    match compare_steps(batch, text.lines()) {
        None => println!("no step differs"),
        Some(difference) => difference.lines.iter().for_each(|line| println!(" {line}")),
    }
    ExitCode::SUCCESS
}
