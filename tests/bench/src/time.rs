//! Timing: short chunks of each contender in turn, so that whatever disturbs the machine disturbs all of them, and the
//! median of many chunks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::contender::Contender;
use crate::kernel;
use crate::opponent::{self, stay_on};
use crate::row::{About, Contenders, Row};

/// How long a chunk is to take: much longer than a look at the clock, much shorter than a turn of the scheduler.
const CHUNK: Duration = Duration::from_micros(20);

/// The fewest chunks a figure is taken from.
const LEAST_CHUNKS: usize = 51;

pub(crate) fn run(rows: &[Row], budget: u64, cpu: Option<usize>) -> Result<()> {
    stay_on(cpu).context("cannot stay on a CPU")?;
    for skipped in [kernel::unavailable(), opponent::unavailable()].into_iter().flatten() {
        println!("{}", serde_json::json!({ "skipped": skipped }));
    }
    let clock = clock_cost();
    for row in rows {
        let measured = measure(row, Duration::from_millis(budget), clock);
        println!("{}", serde_json::to_string(&measured)?);
    }
    Ok(())
}

/// A row with its figures.
#[derive(Debug, Serialize)]
struct Measured<'r> {
    #[serde(flatten)]
    about: &'r About,
    ours: Figure,
    floor: Option<Figure>,
    peer: Option<Figure>,
    kernel: Option<Figure>,
}

/// What one contender cost, in nanoseconds an operation.
#[derive(Debug, Serialize)]
struct Figure {
    what: String,
    median: f64,
    p10: f64,
    p90: f64,
    /// The median of the ratios of ours to this one, chunk by chunk.
    ratio: f64,
    chunks: usize,
    operations: u64,
}

fn measure(row: &Row, budget: Duration, clock: Duration) -> Measured<'_> {
    let Contenders { ours, floor, peer, kernel } = row.contenders();
    let all = [Some(ours), floor, peer, kernel];
    let mut runners = all.map(|one| one.map(|contender| Runner::new(contender, clock)));
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < budget || rounds < LEAST_CHUNKS {
        // Nobody always follows the same other.
        let (before, after) = runners.split_at_mut(rounds % 4);
        after.iter_mut().chain(before).flatten().for_each(Runner::chunk);
        rounds += 1;
    }
    let ours = runners[0].as_ref().map_or_else(Vec::new, |ours| ours.chunks.clone());
    let [its, floor, peer, kernel] = runners.map(|one| one.map(|runner| runner.figure(&ours)));
    let its = its.unwrap_or_else(|| unreachable!("ours is always there"));
    Measured { about: row.about(), ours: its, floor, peer, kernel }
}

/// A contender and how long its chunks took, in nanoseconds an operation.
struct Runner {
    contender: Contender,
    clock: Duration,
    /// Operations between two looks at the clock.
    pass: u32,
    /// Passes a chunk.
    passes: u32,
    chunks: Vec<f64>,
}

impl Runner {
    fn new(contender: Contender, clock: Duration) -> Self {
        let mut runner = Self { contender, clock, pass: 1, passes: 1, chunks: Vec::new() };
        if let Some(limit) = runner.contender.limit {
            runner.pass = limit;
            // Once cold.
            let _ = runner.pass();
            let once = runner.pass().max(Duration::from_nanos(1));
            runner.passes = (CHUNK.as_nanos() / once.as_nanos()).clamp(1, 1000) as u32;
            return runner;
        }
        while runner.pass() < CHUNK {
            runner.pass = runner.pass.saturating_mul(2);
        }
        runner
    }

    fn chunk(&mut self) {
        let took: Duration = (0..self.passes).map(|_| self.pass()).sum();
        let operations =
            f64::from(self.pass) * f64::from(self.passes) * f64::from(self.contender.parts);
        self.chunks.push(took.as_nanos() as f64 / operations);
    }

    fn pass(&mut self) -> Duration {
        self.contender.work.reset();
        let start = Instant::now();
        self.contender.work.run(self.pass);
        start.elapsed().saturating_sub(self.clock)
    }

    fn figure(self, ours: &[f64]) -> Figure {
        let ratios: Vec<f64> = ours.iter().zip(&self.chunks).map(|(a, b)| a / b).collect();
        let operations = u64::from(self.pass) * u64::from(self.passes) * self.chunks.len() as u64;
        let chunks = self.chunks.len();
        let sorted = sorted(self.chunks);
        Figure {
            what: self.contender.what,
            median: percentile(&sorted, 50),
            p10: percentile(&sorted, 10),
            p90: percentile(&sorted, 90),
            ratio: percentile(&self::sorted(ratios), 50),
            chunks,
            operations,
        }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The value that `percent` of `sorted` are below; there is at least one value.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// What two looks at the clock cost with nothing between.
fn clock_cost() -> Duration {
    let costs: Vec<f64> = (0..10_001).map(|_| Instant::now().elapsed().as_nanos() as f64).collect();
    Duration::from_nanos(percentile(&sorted(costs), 50) as u64)
}
