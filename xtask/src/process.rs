//! Child processes: each in a process group of its own, which is killed whole.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

use crate::progress::Progress;

/// Process groups alive now, for the signal handler.
static GROUPS: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// Ends our children when we are told to end: in groups of their own they do not hear Ctrl-C.
pub(crate) fn stop_children_on_signal() -> Result<()> {
    ctrlc::set_handler(|| {
        for group in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            kill(*group);
        }
        std::process::exit(130);
    })
    .context("cannot install the signal handler")
}

/// A child and whatever it starts; all of it is killed on drop.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    id: i32,
}

impl Group {
    /// Starts `command` with no standard input.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        // The lock spans the spawn so that a signal cannot fall between start and registration.
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let id = i32::try_from(child.id()).context("process id out of range")?;
        groups.push(id);
        Ok(Self { child, id })
    }

    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot wait for a child process")
    }

    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait for a child process")
    }

    /// Its standard output, if that was piped.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill(self.id);
        // Reaps it; nothing is left to do if that fails.
        let _ = self.child.wait();
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| *id != self.id);
    }
}

fn kill(group: i32) {
    if let Some(pid) = Pid::from_raw(group) {
        // Fails only when the group is already gone.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// What a finished command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) success: bool,
    /// stdout and stderr, in the order written.
    pub(crate) text: String,
}

impl Finished {
    /// The last lines, for an error message.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Runs `command` to its end with its output in `log`, showing the latest line as progress.
pub(crate) fn run_logged(command: &mut Command, label: &str, log: &Path) -> Result<Finished> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(out.try_clone()?).stderr(out);
    let mut reader = File::open(log)?;
    let mut bytes = Vec::new();
    let mut progress = Progress::start(label);
    let mut group = Group::spawn(command)?;
    let status = loop {
        let status = group.try_wait()?;
        reader.read_to_end(&mut bytes)?;
        if status.is_some() {
            break status;
        }
        progress.tick(&last_line(&bytes));
        std::thread::sleep(Duration::from_millis(50));
    };
    Ok(Finished {
        success: status.is_some_and(|status| status.success()),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

fn last_line(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(400)..];
    let text = String::from_utf8_lossy(tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::{Group, last_line, run_logged};

    #[test]
    fn last_line_skips_blank_ones() {
        assert_eq!(last_line(b"one\ntwo\n\n"), "two");
        assert_eq!(last_line(b""), "");
    }

    #[test]
    fn output_and_status_are_kept() -> anyhow::Result<()> {
        let log = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let done = run_logged(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            "test",
            &log,
        )?;
        std::fs::remove_file(&log)?;
        assert!(!done.success);
        assert_eq!(done.text, "out\nerr\n");
        assert_eq!(done.tail(1), "err");
        Ok(())
    }

    #[test]
    fn drop_kills_grandchildren() -> anyhow::Result<()> {
        let mark = std::env::temp_dir().join(format!("xtask-mark-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "(sleep 1; : >\"$0\") & wait"]).arg(&mark);
        let group = Group::spawn(&mut command)?;
        std::thread::sleep(Duration::from_millis(200));
        drop(group);
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!mark.exists());
        Ok(())
    }
}
