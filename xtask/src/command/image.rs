//! `cargo xtask image`.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Context, Verdict};
use crate::cli::ImageArgs;
use crate::hil_build;

pub(crate) fn run(context: &Context, arguments: &ImageArgs) -> Result<Verdict> {
    let built = hil_build::build(&context.workspace)?;
    let line = command_line(arguments);
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
fn command_line(arguments: &ImageArgs) -> String {
    let mut words = vec!["machine=metal".to_owned()];
    words.extend(arguments.case.iter().map(|case| format!("case={case}")));
    words.extend(arguments.port.iter().map(|port| format!("serial={port:#x}")));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{ImageArgs, command_line};

    #[test]
    fn words() {
        let all = ImageArgs { case: None, port: None };
        assert_eq!(command_line(&all), "machine=metal");
        let some = ImageArgs { case: Some("upcall".to_owned()), port: Some(0x2f8) };
        assert_eq!(command_line(&some), "machine=metal case=upcall serial=0x2f8");
    }
}
