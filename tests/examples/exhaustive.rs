//! Writes all 2^32 low words of ICR, for both vendors and in both modes: `exhaustive [BITS]`, where
//! fewer than 32 bits leave out words at even distances.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use vlapic_core::{Mode, Vendor};
use vlapic_tests::exhaustive::icr::{Mismatch, RUNS, UPPER, run};

/// Values of bits 31:8 that a thread takes at a time.
const PIECE: u32 = 1 << 12;

fn main() -> ExitCode {
    let bits = match std::env::args().nth(1).map(|word| word.parse::<u32>()) {
        None => 32,
        Some(Ok(bits @ 20..=32)) => bits,
        Some(_) => {
            eprintln!("usage: exhaustive [BITS], of 20 to 32");
            return ExitCode::from(2);
        }
    };
    let mut operations = 0;
    let mut found = None;
    for (vendor, mode) in RUNS {
        let start = Instant::now();
        match all(vendor, mode, 1 << (32 - bits)) {
            Ok(words) => {
                operations += words;
                let rate = words as f64 / start.elapsed().as_secs_f64() / 1e6;
                let seconds = start.elapsed().as_secs_f64();
                eprintln!("{vendor:?} {mode:?}: {words} words in {seconds:.1} s, {rate:.0} M/s");
            }
            Err(mismatch) => {
                found = Some(mismatch);
                break;
            }
        }
    }
    // Each word is compared in its effect, in what ICR keeps, and in the error it leaves or not.
    println!("operations {operations}\ncomparisons {}", 3 * operations);
    println!("mismatches {}", u32::from(found.is_some()));
    let Some(mismatch) = found else { return ExitCode::SUCCESS };
    println!("  {mismatch}");
    ExitCode::FAILURE
}

/// One run on all CPUs, every `stride`th piece; how many words it was.
fn all(vendor: Vendor, mode: Mode, stride: u32) -> Result<u64, Mismatch> {
    let next = AtomicU32::new(0);
    let stop = AtomicBool::new(false);
    let pieces = UPPER / PIECE / stride;
    let work = || {
        // Relaxed: the numbers alone say who does what.
        while !stop.load(Ordering::Relaxed) {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            let first = piece * stride * PIECE;
            run(vendor, mode, first..first + PIECE)
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(u64::from(pieces) * u64::from(PIECE) * 256)
}
