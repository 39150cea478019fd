//! Debian packages unpacked into a folder of ours: no root, nothing installed.
//!
//! apt is given a state of its own and one line of sources, for the release that has what we need;
//! the site is the one this machine already uses, and signatures are checked with this machine's keys.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::process::run_logged;
use crate::progress::Progress;

/// The release whose packages are fetched: the first with a Bochs that has posted interrupts.
const RELEASE: &str = "trixie";

/// Makes sure `folder` holds `packages` and all they need, unpacked.
///
/// The folder appears whole or not at all, so an interrupted fetch is simply done again; two at the
/// same time wait for each other.
pub(crate) fn unpack_once(folder: &Path, packages: &[&str]) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let parent = folder.parent().context("no folder to unpack into")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let lock = File::create(parent.join(".lock")).context("cannot create the lock file")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the tools folder")?;
    if folder.exists() {
        return Ok(());
    }
    let work = folder.with_extension("partial");
    remove(&work)?;
    fs::create_dir_all(&work)?;
    Apt::new(&work)?.fetch(packages)?.unpack(folder)?;
    remove(&work)
}

/// A private apt state.
struct Apt {
    work: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> Result<Self> {
        for program in ["apt-get", "dpkg"] {
            ensure!(runs(program), "this machine has no {program}");
        }
        for folder in ["lists/partial", "cache/archives/partial", "log"] {
            fs::create_dir_all(work.join(folder))?;
        }
        File::create(work.join("status"))?;
        Ok(Self { work: work.to_owned() })
    }

    /// Downloads `packages` from the first site that offers the release.
    fn fetch(self, packages: &[&str]) -> Result<Self> {
        let sites = sites();
        ensure!(!sites.is_empty(), "apt on this machine knows no Debian site");
        let mut reason = String::new();
        for site in &sites {
            self.write_sources(site)?;
            let update = self.run("update", &["update"])?;
            if !update.success || !self.has_index()? {
                reason = format!(
                    "the site apt uses does not answer with {RELEASE}: {}",
                    complaint(&update.text)
                );
                continue;
            }
            let mut arguments = vec!["install", "-y", "--no-install-recommends", "--download-only"];
            arguments.extend(packages);
            let install = self.run("download", &arguments)?;
            if install.success {
                return Ok(self);
            }
            reason = format!(
                "apt could not download {}: {}",
                packages.join(" "),
                complaint(&install.text)
            );
        }
        bail!(reason)
    }

    fn unpack(self, folder: &Path) -> Result<()> {
        let tree = self.work.join("tree");
        fs::create_dir_all(&tree)?;
        let mut packages: Vec<PathBuf> = fs::read_dir(self.work.join("cache/archives"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        packages.sort();
        let mut progress = Progress::start("unpack");
        for (done, package) in packages.iter().enumerate() {
            let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
            progress.tick(&format!("{}/{} {name}", done + 1, packages.len()));
            let output = Command::new("dpkg")
                .arg("-x")
                .arg(package)
                .arg(&tree)
                .stdin(Stdio::null())
                .output()?;
            ensure!(
                output.status.success(),
                "dpkg could not unpack {name}: {}",
                complaint(&String::from_utf8_lossy(&output.stderr))
            );
        }
        fs::rename(&tree, folder)
            .with_context(|| format!("cannot move the packages to {}", folder.display()))
    }

    fn write_sources(&self, site: &str) -> Result<()> {
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let signed = if Path::new(keyring).exists() {
            format!("[signed-by={keyring}] ")
        } else {
            String::new()
        };
        fs::write(self.work.join("sources.list"), format!("deb {signed}{site} {RELEASE} main\n"))?;
        Ok(())
    }

    /// `apt-get update` may end well without having fetched anything.
    fn has_index(&self) -> Result<bool> {
        for entry in fs::read_dir(self.work.join("lists"))? {
            if entry?.file_name().to_string_lossy().contains("_Packages") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn run(&self, what: &str, arguments: &[&str]) -> Result<crate::process::Finished> {
        let mut command = apt_get();
        let at = |name: &str| self.work.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("Dir::State", at("")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("cache")),
            ("Dir::Log", at("log")),
            ("Debug::NoLocking", "1".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Keep-Downloaded-Packages", "true".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
            ("Acquire::http::Timeout", "30".to_owned()),
            ("Acquire::https::Timeout", "30".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.args(arguments);
        run_logged(&mut command, &format!("apt {what}"), &self.work.join(format!("{what}.log")))
    }
}

/// Sites this machine's apt uses, the likeliest first.
fn sites() -> Vec<String> {
    let labelled =
        ask_apt(&["indextargets", "--format", "$(SITE)", "Label: Debian", "Created-By: Packages"]);
    let mut sites: Vec<String> = Vec::new();
    // Where lists were never fetched there is no label to go by, but apt still knows what it would fetch.
    let planned = ask_apt(&["-o", "Debug::NoLocking=1", "--print-uris", "update"]);
    for site in labelled.lines().map(str::to_owned).chain(planned_sites(&planned)) {
        if !site.is_empty() && !site.ends_with("-security") && !sites.contains(&site) {
            sites.push(site);
        }
    }
    sites
}

/// Sites in the output of `apt-get --print-uris update`, those that look like a Debian archive.
fn planned_sites(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix('\'')?.split_once("/dists/"))
        .map(|(site, _)| site.to_owned())
        .filter(|site| site.ends_with("/debian"))
        .collect()
}

fn ask_apt(arguments: &[&str]) -> String {
    let output = apt_get().args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The line that says most about a failure.
fn complaint(text: &str) -> String {
    let starting = |mark: &str| text.lines().find(|line| line.starts_with(mark));
    let line = starting("E:").or_else(|| starting("W:")).or_else(|| text.lines().last());
    line.unwrap_or("no output").trim().to_owned()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{complaint, planned_sites};

    #[test]
    fn sites_from_planned_downloads() {
        let output = "'http://site.example/debian/dists/bookworm/InRelease' a 0 \n\
                      'http://site.example/debian-security/dists/bookworm-security/InRelease' b 0 \n\
                      'http://other.example/node_20.x/dists/nodistro/InRelease' c 0 \n\
                      Reading package lists...\n";
        assert_eq!(planned_sites(output), ["http://site.example/debian"]);
    }

    #[test]
    fn complaint_prefers_errors() {
        assert_eq!(complaint("W: old\nE: no network\nmore"), "E: no network");
        assert_eq!(complaint("Err:1 x\nW: no network\nmore"), "W: no network");
        assert_eq!(complaint("a\nlast "), "last");
        assert_eq!(complaint(""), "no output");
    }
}
