//! One run of the image: start, read the serial line as it comes, give up in time.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Emulator, Limits};
use crate::process::Group;
use crate::progress::Progress;
use crate::report::{End, Report};
use crate::workspace::Workspace;

/// How long the machine may take to stop once the image has said its last.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs a copy of `image` with `command_line` on `emulator` and collects its records.
///
/// The run's folder is removed when all passed; else it is kept and named.
pub(crate) fn run(
    workspace: &Workspace,
    emulator: &Emulator,
    image: &Path,
    cpus: u32,
    command_line: &str,
    limits: Limits,
    mut report: Report,
) -> Result<Report> {
    let folder = run_folder(workspace)?;
    let copy = folder.join("hil.img");
    fs::copy(image, &copy).context("cannot copy the image")?;
    crate::image::set_command_line(&copy, command_line)?;

    let launch = emulator.launch(&folder, &copy, cpus)?;
    File::create(&launch.serial)?;
    let output = File::create(folder.join("output.txt"))?;
    let mut command = bounded(launch.command, limits.wall + Duration::from_secs(60));
    command.stdout(output.try_clone()?).stderr(output);
    let mut group = Group::spawn(&mut command)?;
    let mut lines = Lines::new(File::open(&launch.serial)?);
    let end = watch(&mut lines, Some(&mut group), limits, &launch.logs, &mut report)?;
    drop(group);
    report.finish(&end);
    if report.counts().failed == 0 {
        let _ = fs::remove_dir_all(&folder);
    } else {
        eprintln!("kept the serial output and logs of this run in {}", folder.display());
    }
    Ok(report)
}

/// The same command under `timeout`, where the machine has it: should we be killed outright, an
/// emulator left behind would else run for ever.
fn bounded(command: Command, limit: Duration) -> Command {
    let Some(timeout) = super::on_path("timeout") else { return command };
    let mut outer = Command::new(timeout);
    outer.args(["-s", "KILL", &limit.as_secs().to_string()]);
    outer.arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

/// Reads records until the image ends, the machine stops or a limit is passed.
pub(crate) fn watch(
    lines: &mut Lines<File>,
    mut group: Option<&mut Group>,
    limits: Limits,
    logs: &[PathBuf],
    report: &mut Report,
) -> Result<End> {
    let mut progress = Progress::start(&format!("hil on {}", report.machine));
    let mut heard = Instant::now();
    loop {
        // Asked before the read, so that what a stopped machine wrote last is still read.
        let stopped = match &mut group {
            Some(group) => group.try_wait()?.is_some(),
            None => false,
        };
        if lines.read(|line| report.take_line(line))? {
            heard = Instant::now();
        }
        if let Some(code) = report.exit_code() {
            if let Some(group) = group {
                await_stop(group)?;
            }
            return Ok(End::Exit(code));
        }
        if stopped {
            lines.take_rest(|line| report.take_line(line));
            return Ok(report.exit_code().map_or_else(|| End::Died(last_words(logs)), End::Exit));
        }
        if progress.elapsed() > limits.wall {
            return Ok(End::TimedOut(limits.wall.as_secs()));
        }
        if heard.elapsed() > limits.stall {
            return Ok(End::Stalled(limits.stall.as_secs()));
        }
        progress.tick(&report.now_running());
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn await_stop(group: &mut Group) -> Result<()> {
    let start = Instant::now();
    while group.try_wait()?.is_none() && start.elapsed() < SHUTDOWN {
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// Cuts a growing source into lines; a read of nothing means nothing yet.
pub(crate) struct Lines<R> {
    source: R,
    pending: Vec<u8>,
}

impl<R: Read> Lines<R> {
    pub(crate) const fn new(source: R) -> Self {
        Self { source, pending: Vec::new() }
    }

    /// Hands over the lines that are complete by now; whether anything was read.
    fn read(&mut self, mut line: impl FnMut(&str)) -> Result<bool> {
        let mut buffer = [0; 4096];
        let mut any = false;
        loop {
            let count = match self.source.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error).context("cannot read the serial line"),
            };
            if count == 0 {
                return Ok(any);
            }
            any = true;
            self.pending.extend_from_slice(&buffer[..count]);
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let bytes: Vec<u8> = self.pending.drain(..=end).collect();
                line(String::from_utf8_lossy(&bytes).trim_end());
            }
        }
    }

    /// The line that was never ended.
    fn take_rest(&mut self, mut line: impl FnMut(&str)) {
        let bytes = std::mem::take(&mut self.pending);
        line(String::from_utf8_lossy(&bytes).trim_end());
    }
}

/// A fresh folder for one run.
fn run_folder(workspace: &Workspace) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only uniqueness is wanted, nothing is published by it.
    let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = workspace.runs().join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// The last telling line an emulator wrote.
fn last_words(logs: &[PathBuf]) -> String {
    for log in logs {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let telling = text.lines().rev().find(|line| line.chars().any(char::is_alphabetic));
        if let Some(line) = telling {
            return line.trim().to_owned();
        }
    }
    "it said nothing".to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use super::{End, Group, Limits, Lines, Report, bounded, watch};

    /// Gives one piece a read, and nothing between pieces.
    struct Pieces(VecDeque<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let piece = self.0.pop_front().unwrap_or_default();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn lines_are_put_together() -> anyhow::Result<()> {
        let pieces: [&[u8]; 5] = [b"HIL-", b"LOG a\r\nHIL-EX", b"", b"IT 0", b""];
        let mut lines = Lines::new(Pieces(pieces.into()));
        let mut seen = Vec::new();
        assert!(lines.read(|line| seen.push(line.to_owned()))?);
        assert_eq!(seen, ["HIL-LOG a"]);
        assert!(lines.read(|line| seen.push(line.to_owned()))?);
        assert!(!lines.read(|line| seen.push(line.to_owned()))?);
        lines.take_rest(|line| seen.push(line.to_owned()));
        assert_eq!(seen, ["HIL-LOG a", "HIL-EXIT 0"]);
        Ok(())
    }

    /// Watches a shell script that writes its serial output to `$0` and complains on `$1`.
    fn watch_script(name: &str, script: &str, wall: u64, stall: u64) -> anyhow::Result<End> {
        let file = |kind: &str| -> PathBuf {
            std::env::temp_dir().join(format!("xtask-{name}-{kind}-{}", std::process::id()))
        };
        let [serial, log] = ["serial", "log"].map(file);
        for path in [&serial, &log] {
            File::create(path)?;
        }
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&serial).arg(&log);
        let mut group = Group::spawn(&mut bounded(command, Duration::from_secs(30)))?;
        let limits = Limits { wall: Duration::from_secs(wall), stall: Duration::from_secs(stall) };
        let mut lines = Lines::new(File::open(&serial)?);
        let mut report = Report::new("script");
        let end =
            watch(&mut lines, Some(&mut group), limits, std::slice::from_ref(&log), &mut report);
        drop(group);
        for path in [&serial, &log] {
            fs::remove_file(path)?;
        }
        end
    }

    #[test]
    fn exit_line_decides() -> anyhow::Result<()> {
        let end = watch_script("exit", "echo HIL-EXIT 3 >$0; exit 1", 20, 20)?;
        assert_eq!(end, End::Exit(3));
        Ok(())
    }

    #[test]
    fn unended_last_line_is_read() -> anyhow::Result<()> {
        let end = watch_script("unended", "printf 'HIL-EXIT 0' >$0", 20, 20)?;
        assert_eq!(end, End::Exit(0));
        Ok(())
    }

    #[test]
    fn death_tells_the_last_words() -> anyhow::Result<()> {
        let end =
            watch_script("death", "echo boot >$0; echo '3rd fault' >$1; echo == >>$1", 20, 20)?;
        assert_eq!(end, End::Died("3rd fault".to_owned()));
        Ok(())
    }

    #[test]
    fn silence_and_endless_chatter_end() -> anyhow::Result<()> {
        assert_eq!(watch_script("silence", "sleep 20", 20, 1)?, End::Stalled(1));
        let chatter = "while echo noise >>$0; do sleep 0.1; done";
        assert_eq!(watch_script("chatter", chatter, 2, 1)?, End::TimedOut(2));
        Ok(())
    }
}
