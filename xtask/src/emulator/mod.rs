//! The machines the image runs on.

mod apt;
mod bochs;
mod metal;
mod qemu;
mod run;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::{LimitArgs, Machine};
use crate::workspace::Workspace;

pub(crate) use metal::watch as watch_metal;
pub(crate) use run::run;

/// A machine that is ready to run the image.
#[derive(Clone, Debug)]
pub(crate) enum Emulator {
    Bochs(bochs::Bochs),
    Qemu(qemu::Qemu),
}

/// One prepared start of an emulator.
#[derive(Debug)]
pub(crate) struct Launch {
    command: Command,
    /// The file the emulated serial line is written to.
    serial: PathBuf,
    /// Where the emulator itself tells what went wrong.
    logs: Vec<PathBuf>,
}

/// When a run is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) wall: Duration,
    /// The longest silence.
    pub(crate) stall: Duration,
}

impl From<LimitArgs> for Limits {
    fn from(arguments: LimitArgs) -> Self {
        Self {
            wall: Duration::from_secs(arguments.timeout),
            stall: Duration::from_secs(arguments.stall),
        }
    }
}

impl Emulator {
    /// Finds or fetches it; the error says in one line why there is none.
    pub(crate) fn find(machine: Machine, workspace: &Workspace) -> Result<Self> {
        match machine {
            Machine::Bochs => bochs::Bochs::find(workspace).map(Self::Bochs),
            Machine::QemuSvm => {
                let acceleration = qemu::Acceleration::Tcg(qemu::Threads::OneEach);
                qemu::Qemu::find(workspace, acceleration).map(Self::Qemu)
            }
            Machine::Kvm => qemu::Qemu::find_kvm(workspace).map(Self::Qemu),
            Machine::Metal => bail!("a real machine is watched, not started"),
        }
    }

    /// The same, with one host thread for all CPUs where there is a choice.
    pub(crate) fn one_thread(self) -> Self {
        match self {
            Self::Qemu(qemu) => Self::Qemu(qemu.one_thread()),
            Self::Bochs(_) => self,
        }
    }

    /// Name and version, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bochs(bochs) => bochs.describe(),
            Self::Qemu(qemu) => qemu.describe(),
        }
    }

    fn launch(&self, folder: &Path, image: &Path, cpus: u32) -> Result<Launch> {
        match self {
            Self::Bochs(bochs) => bochs.launch(folder, image, cpus).context("cannot prepare Bochs"),
            Self::Qemu(qemu) => Ok(qemu.launch(folder, image, cpus)),
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A program out of an unpacked tree, run by the tree's own loader with the tree's own libraries.
fn through_loader(tree: &Path, program: &str) -> Vec<PathBuf> {
    let library = tree.join("usr/lib/x86_64-linux-gnu");
    let mut search = library.clone().into_os_string();
    for more in [library.join("pulseaudio"), tree.join("lib/x86_64-linux-gnu")] {
        search.push(":");
        search.push(more);
    }
    vec![
        tree.join("usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path".into(),
        search.into(),
        tree.join(program),
    ]
}
