//! The command line inside an image.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MAGIC: &[u8] = b"HIL-COMMAND-LINE";
/// Length of an area, the magic included.
const AREA: usize = 512;

/// Writes `line` into every area of `file`, an ELF or a disk image, that the program reads its command line from.
///
/// A disk image has two: the program as the boot sector loads it, and the EFI application.
pub(crate) fn set_command_line(file: &Path, line: &str) -> Result<()> {
    let mut bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    patch(&mut bytes, line)
        .with_context(|| format!("cannot put a command line into {}", file.display()))?;
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

fn patch(bytes: &mut [u8], line: &str) -> Result<()> {
    ensure!(line.len() < AREA - MAGIC.len(), "it is longer than {} bytes", AREA - MAGIC.len() - 1);
    ensure!(
        line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "it is not all printable ASCII"
    );
    let areas: Vec<usize> = (0..bytes.len().saturating_sub(AREA - 1))
        .filter(|&start| bytes[start..].starts_with(MAGIC))
        .collect();
    ensure!(!areas.is_empty(), "there is no area for one");
    for start in areas {
        let text = &mut bytes[start + MAGIC.len()..start + AREA];
        text.fill(0);
        text[..line.len()].copy_from_slice(line.as_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut area = MAGIC.to_vec();
        area.extend(b"an older and longer line");
        area.resize(AREA, 0);
        [vec![1; 100], area.clone(), vec![2; 33], area].concat()
    }

    #[test]
    fn every_area_is_rewritten_and_nothing_else() {
        let mut bytes = image();
        patch(&mut bytes, "cpus=4 list").unwrap();
        assert_eq!(bytes.len(), image().len());
        for start in [100, 100 + AREA + 33] {
            assert_eq!(&bytes[start..start + 16], MAGIC);
            assert_eq!(&bytes[start + 16..start + 27], b"cpus=4 list");
            assert!(bytes[start + 27..start + AREA].iter().all(|&byte| byte == 0));
        }
        assert_eq!(bytes[..100], [1; 100]);
        assert_eq!(bytes[100 + AREA..][..33], [2; 33]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(patch(&mut image(), &"x".repeat(496)).is_err());
        assert!(patch(&mut image(), &"x".repeat(495)).is_ok());
        assert!(patch(&mut image(), "two\nlines").is_err());
        assert!(patch(&mut [0; 2000], "list").is_err());
    }
}
