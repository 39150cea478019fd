//! `cargo xtask image`.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Context, Verdict};
use crate::cli::{ImageArgs, Selection};
use crate::hil_build;

pub(crate) fn run(context: &Context, arguments: &ImageArgs) -> Result<Verdict> {
    let built = hil_build::build(&context.workspace)?;
    let line = command_line("metal", &arguments.selection, false);
    crate::image::set_command_line(&built.image, &line)?;
    let bytes = std::fs::metadata(&built.image)?.len();
    let image = built.image.display().to_string();
    let elf = built.elf.display().to_string();
    let result = json!({ "image": image, "elf": elf, "bytes": bytes, "command_line": line });
    context.print(&result, |out| {
        writeln!(out, "{image} ({bytes} bytes), told: {line}")?;
        writeln!(out, "Write it to a USB stick (everything on the stick is lost):")?;
        writeln!(out, "    sudo dd if={image} of=/dev/sdX bs=1M conv=fsync   # lsblk tells which sdX")?;
        writeln!(out, "Boot a PC from it (BIOS, or UEFI with Secure Boot off) with its COM1 wired to this machine:")?;
        writeln!(out, "    cargo xtask hil --machine metal --serial /dev/ttyUSB0")?;
        writeln!(out, "Or from an installed GRUB: multiboot2 /boot/hil.elf, with {elf} copied there.")?;
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

/// What the image reads at its start: words with spaces between.
pub(crate) fn command_line(machine: &str, selection: &Selection, list: bool) -> String {
    let mut words = vec![format!("machine={machine}"), format!("cpus={}", selection.cpus)];
    words.extend(selection.case.iter().map(|case| format!("case={case}")));
    if list {
        words.push("list".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Selection, command_line};

    #[test]
    fn words() {
        let mut selection = Selection { cpus: 4, case: None };
        assert_eq!(command_line("bochs", &selection, true), "machine=bochs cpus=4 list");
        selection.case = Some("upcall".to_owned());
        assert_eq!(command_line("kvm", &selection, false), "machine=kvm cpus=4 case=upcall");
    }
}
