//! Every command a person or CI runs: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod cli;
mod command;
mod emulator;
mod hil_build;
mod image;
mod machine_code;
mod process;
mod progress;
mod report;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = process::stop_children_on_signal().and_then(|()| command::run(&cli));
    let verdict = result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        command::Verdict::of_error(&error)
    });
    ExitCode::from(verdict as u8)
}
