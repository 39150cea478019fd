//! QEMU: from PATH, else Debian's, unpacked under the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Launch, apt};
use crate::workspace::Workspace;

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Acceleration {
    /// Emulated; SVM but no VT-x.
    Tcg(Threads),
    /// On the host's VT-x or SVM; the image has the same, nested.
    Kvm(Nested),
}

/// The host threads that CPUs are emulated in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Threads {
    OneEach,
    OneForAll,
}

/// What KVM gives its guests for guests of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Nested {
    VtX,
    Svm,
}

/// A QEMU that can run the image.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    program: Vec<PathBuf>,
    /// Firmware, where it is not in its usual place.
    data: Vec<PathBuf>,
    modules: Option<PathBuf>,
    acceleration: Acceleration,
    version: String,
}

impl Qemu {
    /// One that runs on KVM, with what the host offers.
    pub(crate) fn find_kvm(workspace: &Workspace) -> Result<Self> {
        let nested = nested().map_err(|why| {
            anyhow!(
                "{why}: needs a host with nested VT-x or SVM (--machine bochs and qemu-svm need none)"
            )
        })?;
        Self::find(workspace, Acceleration::Kvm(nested))
    }

    /// The one on PATH, else fetched.
    pub(crate) fn find(workspace: &Workspace, acceleration: Acceleration) -> Result<Self> {
        if let Some(program) = super::on_path("qemu-system-x86_64")
            && let Some(qemu) = Self::probe(vec![program], Vec::new(), None, acceleration)
        {
            return Ok(qemu);
        }
        Self::fetch(&workspace.tools().join("qemu"), acceleration)
            .context("no QEMU: put qemu-system-x86_64 on PATH, or let apt reach its site")
    }

    /// The same, with one thread for all CPUs where they are emulated.
    pub(crate) fn one_thread(mut self) -> Self {
        if let Acceleration::Tcg(threads) = &mut self.acceleration {
            *threads = Threads::OneForAll;
        }
        self
    }

    pub(crate) fn describe(&self) -> String {
        let program =
            self.program.last().map(|path| path.display().to_string()).unwrap_or_default();
        let nested = match self.acceleration {
            Acceleration::Tcg(_) => "",
            Acceleration::Kvm(Nested::VtX) => ", nested VT-x",
            Acceleration::Kvm(Nested::Svm) => ", nested SVM",
        };
        format!("QEMU {} ({program}, {}{nested})", self.version, self.accelerator())
    }

    fn fetch(tree: &Path, acceleration: Acceleration) -> Result<Self> {
        apt::unpack_once(tree, &["qemu-system-x86", "seabios"])?;
        let program = super::through_loader(tree, "usr/bin/qemu-system-x86_64");
        let data = vec![tree.join("usr/share/qemu"), tree.join("usr/share/seabios")];
        let modules = Some(tree.join("usr/lib/x86_64-linux-gnu/qemu"));
        Self::probe(program, data, modules, acceleration).with_context(|| {
            format!("the QEMU in {} does not run: remove that folder and try again", tree.display())
        })
    }

    fn probe(
        program: Vec<PathBuf>,
        data: Vec<PathBuf>,
        modules: Option<PathBuf>,
        acceleration: Acceleration,
    ) -> Option<Self> {
        let mut qemu = Self { program, data, modules, acceleration, version: String::new() };
        let output = qemu.command().arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, rest) = text.split_once("version ")?;
        qemu.version = rest.split_whitespace().next()?.to_owned();
        Some(qemu)
    }

    /// Prepares one run in `folder`.
    pub(crate) fn launch(&self, folder: &Path, image: &Path, cpus: u32) -> Launch {
        let serial = folder.join("serial.txt");
        let mut command = self.command();
        for path in &self.data {
            command.arg("-L").arg(path);
        }
        // `host` shows what is nested; `max` has all that TCG can emulate.
        let cpu = if matches!(self.acceleration, Acceleration::Tcg(_)) { "max" } else { "host" };
        command
            .args([
                "-accel",
                self.accelerator(),
                "-cpu",
                cpu,
                "-smp",
                &cpus.to_string(),
                "-m",
                "256",
            ])
            .args(["-display", "none", "-monitor", "none", "-no-reboot", "-nodefaults"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-drive")
            .arg(format!(
                "file={},format=raw,if=ide",
                image.display().to_string().replace(',', ",,")
            ))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .current_dir(folder);
        Launch { command, serial, logs: vec![folder.join("output.txt")] }
    }

    fn command(&self) -> Command {
        let mut parts = self.program.iter();
        let mut command =
            Command::new(parts.next().map_or(Path::new("qemu-system-x86_64"), PathBuf::as_path));
        command.args(parts);
        if let Some(modules) = &self.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command
    }

    const fn accelerator(&self) -> &'static str {
        match self.acceleration {
            Acceleration::Tcg(Threads::OneEach) => "tcg",
            Acceleration::Tcg(Threads::OneForAll) => "tcg,thread=single",
            Acceleration::Kvm(_) => "kvm",
        }
    }
}

/// What KVM here gives its guests.
fn nested() -> Result<Nested> {
    ensure!(Path::new("/dev/kvm").exists(), "no /dev/kvm");
    ensure!(
        fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
        "/dev/kvm may not be opened by this user"
    );
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    nested_of(&cpu, |module| {
        let file = format!("/sys/module/{module}/parameters/nested");
        fs::read_to_string(file).unwrap_or_default()
    })
}

/// The same from what `/proc/cpuinfo` says, and the parameter `nested` of a kernel module.
fn nested_of(cpuinfo: &str, parameter: impl Fn(&str) -> String) -> Result<Nested> {
    let (name, module, nested) = if has_flag(cpuinfo, "vmx") {
        ("VT-x", "kvm_intel", Nested::VtX)
    } else if has_flag(cpuinfo, "svm") {
        ("SVM", "kvm_amd", Nested::Svm)
    } else {
        bail!("this CPU shows neither VT-x nor SVM");
    };
    ensure!(
        matches!(parameter(module).trim(), "Y" | "1"),
        "nested {name} is off (module parameter {module}.nested)"
    );
    Ok(nested)
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|word| word == flag))
}

#[cfg(test)]
mod tests {
    use super::{Nested, has_flag, nested_of};

    #[test]
    fn flags_are_whole_words() {
        let cpuinfo = "processor : 0\nflags\t\t: fpu vmx ssse3\nvmx flags\t: ept";
        assert!(has_flag(cpuinfo, "vmx"));
        assert!(!has_flag(cpuinfo, "vm"));
        assert!(!has_flag("flags : fpu\nvmx flags : vmx", "vmx"));
    }

    #[test]
    fn either_vendor_nests() {
        let with = |flag: &str| format!("flags : fpu {flag} sse");
        let on = |wanted: &'static str| {
            move |module: &str| (if module == wanted { "1\n" } else { "0\n" }).to_owned()
        };
        assert_eq!(nested_of(&with("vmx"), on("kvm_intel")).ok(), Some(Nested::VtX));
        assert_eq!(nested_of(&with("svm"), on("kvm_amd")).ok(), Some(Nested::Svm));
        let off = nested_of(&with("svm"), on("kvm_intel")).map_err(|error| error.to_string());
        assert_eq!(off, Err("nested SVM is off (module parameter kvm_amd.nested)".to_owned()));
        assert!(nested_of(&with("none"), on("kvm_amd")).is_err());
    }
}
