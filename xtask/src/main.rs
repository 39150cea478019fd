//! Every command a person or CI runs: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod cli;
mod command;
mod emulator;
mod hil_build;
mod image;
mod process;
mod progress;
mod report;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if let Err(error) = process::stop_children_on_signal() {
        eprintln!("error: {error:#}");
        return ExitCode::from(command::Verdict::Environment as u8);
    }
    match command::run(&cli) {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(command::Verdict::Environment as u8)
        }
    }
}
