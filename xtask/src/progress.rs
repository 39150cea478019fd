//! A spinner or a bar on a terminal, a plain line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one step, on stderr.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    start: Instant,
    next_line: Duration,
}

impl Progress {
    pub(crate) fn start(label: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            label: label.to_owned(),
            bar,
            start: Instant::now(),
            next_line: Duration::from_secs(2),
        }
    }

    /// Says what is being done now. Cheap: call it as often as wanted.
    pub(crate) fn tick(&mut self, now_doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(now_doing.to_owned());
            return;
        }
        let elapsed = self.start.elapsed();
        if elapsed >= self.next_line {
            self.next_line = elapsed + LINE_EVERY;
            eprintln!("{}: {} s  {now_doing}", self.label, elapsed.as_secs());
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a known number of steps, on stderr.
#[derive(Debug)]
pub(crate) struct Steps {
    label: String,
    bar: Option<ProgressBar>,
    start: Instant,
    next_line: Duration,
    done: u64,
    all: u64,
}

impl Steps {
    pub(crate) fn start(label: &str, all: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all);
            let template = "{prefix} {elapsed} [{bar:30}] {pos}/{len} {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let (start, next_line) = (Instant::now(), Duration::from_secs(2));
        Self { label: label.to_owned(), bar, start, next_line, done: 0, all }
    }

    /// One more is done: `what`.
    pub(crate) fn done(&mut self, what: &str) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(what.to_owned());
            return;
        }
        let elapsed = self.start.elapsed();
        if elapsed >= self.next_line {
            self.next_line = elapsed + LINE_EVERY;
            eprintln!(
                "{}: {} s  {} of {}: {what}",
                self.label,
                elapsed.as_secs(),
                self.done,
                self.all
            );
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
