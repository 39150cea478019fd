//! A real machine: booted by hand from the USB image, watched over its serial line.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use super::Limits;
use super::run::{Lines, watch as watch_lines};
use crate::report::Report;

/// What the image sets its UART to.
const BAUD: u32 = 115_200;

/// Collects the records that arrive on `device`.
pub(crate) fn watch(device: &Path, limits: Limits, mut report: Report) -> Result<Report> {
    let line = open(device)?;
    eprintln!("listening on {}: boot the machine from the USB stick now", device.display());
    let end = watch_lines(&mut Lines::new(line), None, limits, &[], &mut report)?;
    report.finish(&end);
    Ok(report)
}

/// Opens a terminal device raw at the image's speed; any other file (a capture) is read as it is.
fn open(device: &Path) -> Result<File> {
    // Non-blocking: else the open itself waits for a carrier.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits())?)
        .open(device)
        .with_context(|| {
            format!("cannot open {}: is it the right device, may you read it?", device.display())
        })?;
    if let Ok(mut settings) = tcgetattr(&file) {
        settings.make_raw();
        // A three-wire cable has no carrier line.
        settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        settings.set_speed(BAUD).context("this device has no 115200 baud")?;
        settings.special_codes[SpecialCodeIndex::VMIN] = 0;
        settings.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&file, OptionalActions::Flush, &settings)
            .context("cannot set up the serial line")?;
    }
    Ok(file)
}
