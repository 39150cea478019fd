//! Bochs: from PATH if it is new enough, else Debian's, unpacked under the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Launch, apt};
use crate::workspace::Workspace;

/// CPU models with virtual-interrupt delivery and posted interrupts, the best first.
const MODELS: [&str; 2] = ["sapphire_rapids", "corei7_skylake_x"];

/// Bochs takes disks of whole cylinders: 16 heads, 63 sectors.
const CYLINDER: u64 = 16 * 63 * 512;

/// A Bochs that can run the image.
#[derive(Clone, Debug)]
pub(crate) struct Bochs {
    program: Vec<PathBuf>,
    environment: Vec<(&'static str, PathBuf)>,
    /// Holds the BIOS.
    share: PathBuf,
    model: &'static str,
    version: String,
    /// Built with the debugger: it waits for a command before it starts.
    debugger: bool,
}

impl Bochs {
    /// The one on PATH, else fetched.
    pub(crate) fn find(workspace: &Workspace) -> Result<Self> {
        let on_path = ["bochs-bin", "bochs"].into_iter().find_map(Self::on_path);
        match on_path {
            Some(bochs) => Ok(bochs),
            None => Self::fetch(&workspace.tools().join("bochs"))
                .context("no Bochs: put Bochs 2.8 or newer on PATH, or let apt reach its site"),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let program =
            self.program.last().map(|path| path.display().to_string()).unwrap_or_default();
        format!("Bochs {} ({program}, {})", self.version, self.model)
    }

    fn on_path(name: &str) -> Option<Self> {
        let program = super::on_path(name)?;
        let prefix = program.parent()?.parent()?.to_owned();
        let shares = [
            prefix.join("share/bochs"),
            "/usr/share/bochs".into(),
            "/usr/local/share/bochs".into(),
        ];
        let share = shares.into_iter().find(|share| share.join("BIOS-bochs-latest").exists())?;
        Self::probe(vec![program], Vec::new(), share)
    }

    fn fetch(tree: &Path) -> Result<Self> {
        apt::unpack_once(tree, &["bochs", "bochs-term", "bochsbios", "vgabios", "seabios"])?;
        let library = tree.join("usr/lib/x86_64-linux-gnu");
        let share = tree.join("usr/share/bochs");
        let program = super::through_loader(tree, "usr/bin/bochs-bin");
        let environment =
            vec![("LTDL_LIBRARY_PATH", library.join("bochs/plugins")), ("BXSHARE", share.clone())];
        Self::probe(program, environment, share).with_context(|| {
            format!(
                "the Bochs in {} does not run: remove that folder and try again",
                tree.display()
            )
        })
    }

    /// Asks the program what it is; `None` if it does not run or is too old.
    fn probe(
        program: Vec<PathBuf>,
        environment: Vec<(&'static str, PathBuf)>,
        share: PathBuf,
    ) -> Option<Self> {
        let ask = |arguments: &[&str]| -> Option<String> {
            let output = command(&program, &environment)
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .ok()?;
            let both = [output.stdout, output.stderr].concat();
            Some(String::from_utf8_lossy(&both).into_owned())
        };
        let models = ask(&["--help", "cpu"])?;
        let model =
            MODELS.into_iter().find(|model| models.lines().any(|line| line.trim() == *model))?;
        let version = version(&models)?;
        if version_number(&version)? < (2, 8) {
            return None;
        }
        let debugger = ask(&["--help"])?.contains("-dbglog");
        Some(Self { program, environment, share, model, version, debugger })
    }

    /// Prepares one run in `folder`: pads the disk and writes the configuration.
    pub(crate) fn launch(&self, folder: &Path, image: &Path, cpus: u32) -> Result<Launch> {
        let disk = fs::OpenOptions::new().write(true).open(image)?;
        disk.set_len(disk.metadata()?.len().next_multiple_of(CYLINDER))?;
        let serial = folder.join("serial.txt");
        let log = folder.join("bochs.log");
        let rc = folder.join("bochsrc");
        fs::write(&rc, self.configuration(image, &serial, &log, cpus))?;
        let mut command = command(&self.program, &self.environment);
        command.arg("-q").arg("-f").arg(&rc).current_dir(folder);
        if self.debugger {
            let script = folder.join("debugger");
            fs::write(&script, "c\n")?;
            command.arg("-rc").arg(script);
        }
        Ok(Launch { command, serial, logs: vec![log, folder.join("output.txt")] })
    }

    fn configuration(&self, image: &Path, serial: &Path, log: &Path, cpus: u32) -> String {
        let [bios, vga] =
            ["BIOS-bochs-latest", "VGABIOS-lgpl-latest"].map(|name| self.share.join(name));
        let (bios, vga, image) = (bios.display(), vga.display(), image.display());
        let (serial, log, model) = (serial.display(), log.display(), self.model);
        // rfb is the one display that needs no terminal and no X; it takes the first free port from
        // 5900 on. A low ips makes the BIOS's waits, which are in virtual time, short.
        format!(
            "plugin_ctrl: unmapped=1, biosdev=1, serial=1, iodebug=0, speaker=0, parallel=0, gameport=0, extfpuirq=0\n\
             config_interface: textconfig\n\
             display_library: rfb, options=\"timeout=0\"\n\
             memory: guest=256, host=256\n\
             romimage: file=\"{bios}\"\n\
             vgaromimage: file=\"{vga}\"\n\
             cpu: model={model}, count={cpus}, ips=5000000, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
             clock: sync=none\n\
             ata0-master: type=disk, path=\"{image}\", mode=flat\n\
             boot: disk\n\
             com1: enabled=1, mode=file, dev=\"{serial}\"\n\
             port_e9_hack: enabled=1\n\
             log: \"{log}\"\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=ignore\n\
             debug: action=ignore\n\
             sound: waveoutdrv=dummy\n"
        )
    }
}

fn command(program: &[PathBuf], environment: &[(&'static str, PathBuf)]) -> Command {
    let mut parts = program.iter();
    let mut command = Command::new(parts.next().map_or(Path::new("bochs"), PathBuf::as_path));
    command.args(parts).envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

/// `3.0` from the banner `Bochs x86 Emulator 3.0`.
fn version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Emulator ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn version_number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next()?.parse().ok();
    Some((part()?, part()?))
}

#[cfg(test)]
mod tests {
    use super::{version, version_number};

    #[test]
    fn version_from_banner() {
        let banner = "=====\n       Bochs x86 Emulator 3.0\n  Built from";
        assert_eq!(version(banner).as_deref(), Some("3.0"));
        assert_eq!(version("no banner"), None);
    }

    #[test]
    fn versions_compare() {
        assert_eq!(version_number("2.7"), Some((2, 7)));
        assert_eq!(version_number("2.8.devel"), Some((2, 8)));
        assert!(version_number("3.0") > Some((2, 8)));
        assert_eq!(version_number("x"), None);
    }
}
