//! What the drivers cost, beside floors and peers.
//!
//! `cargo xtask bench` builds this program and reads what it prints: one JSON object a line. It times each row, or, under
//! valgrind, runs it for its instructions to be counted.

mod contender;
mod count;
mod floor;
mod kernel;
mod opponent;
mod peer;
mod row;
mod rows;
mod subject;
mod time;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use row::Row;

/// Times the rows, or runs them for their instructions to be counted.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only the rows whose identifier contains this text.
    #[arg(long, global = true, default_value = "")]
    filter: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Print what there is to measure
    List,
    /// Time the rows
    Time {
        /// How long to stay on one row, in milliseconds
        #[arg(long, default_value_t = 600)]
        budget: u64,

        /// The CPU to stay on; the last one unless given
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// Run each row a fixed number of times inside `counted`, for callgrind
    Count,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    subject::start_clock();
    let rows: Vec<Row> =
        rows::all().into_iter().filter(|row| row.id().contains(&arguments.filter)).collect();
    let result = match arguments.command {
        Command::List => list(&rows),
        Command::Time { budget, cpu } => time::run(&rows, budget, cpu),
        Command::Count => count::run(&rows),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list(rows: &[Row]) -> anyhow::Result<()> {
    for row in rows {
        println!("{}", serde_json::to_string(&row.about())?);
    }
    Ok(())
}
