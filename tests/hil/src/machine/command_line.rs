//! The command line: words which the runner writes into the image before it starts it, or which a loader hands over.

use core::arch::global_asm;

/// Length of the area in the image, the magic included.
const AREA: usize = 512;
const MAGIC: usize = 16;
const TEXT: usize = AREA - MAGIC;

/// Space-separated words, `key=value` or `key`. Where a key comes twice, the first counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandLine {
    /// A zero byte ends it.
    text: [u8; 2 * TEXT],
}

impl CommandLine {
    /// Reads the words the loader gives, at that address if it gives any, then those in the image.
    pub(crate) fn read(loader: Option<u64>) -> Self {
        let mut line = Self { text: [0; 2 * TEXT] };
        let mut length = 0;
        if let Some(address) = loader {
            length = line.append(0, core::ptr::with_exposed_provenance(address as usize));
            line.text[length] = b' ';
            length += 1;
        }
        line.append(length, (&raw const hil_command_line).cast::<u8>().wrapping_add(MAGIC));
        line
    }

    /// Copies text up to a zero byte, but no more than fits; the new length, which leaves room for one byte.
    fn append(&mut self, length: usize, source: *const u8) -> usize {
        for index in 0..TEXT - 1 {
            // Volatile: the area is changed in the file, after the compiler has seen it.
            // SAFETY: the area is longer than this, and a loader's text ends with a zero, beyond which nothing is read.
            let byte = unsafe { source.wrapping_add(index).read_volatile() };
            if byte == 0 {
                return length + index;
            }
            self.text[length + index] = byte;
        }
        length + TEXT - 1
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        let end = self.text.iter().position(|&byte| byte == 0).unwrap_or(self.text.len());
        core::str::from_utf8(&self.text[..end]).unwrap_or("").split_ascii_whitespace()
    }

    /// Whether the word stands there alone.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.words().any(|candidate| candidate == word)
    }

    /// What stands behind `key=`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.words().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// What stands behind `key=`, as a number: decimal, or hexadecimal after `0x`.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        let value = self.value(key)?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    }
}

unsafe extern "C" {
    static hil_command_line: [u8; AREA];
}

global_asm!(
    r#"
    .section .command_line, "aw"
    .global hil_command_line
hil_command_line:
    .ascii "HIL-COMMAND-LINE"
    .fill 496, 1, 0
    .text
    "#,
    options(att_syntax),
);
