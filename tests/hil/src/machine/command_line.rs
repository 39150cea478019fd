//! The command line: words which the runner writes into the image before it starts it.

use core::arch::global_asm;

/// Length of the area, the magic included.
const AREA: usize = 512;
const MAGIC: usize = 16;

/// Space-separated words, `key=value` or `key`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandLine {
    text: [u8; AREA - MAGIC],
}

impl CommandLine {
    pub(crate) fn read() -> Self {
        let start = (&raw const hil_command_line).cast::<u8>();
        let mut text = [0; AREA - MAGIC];
        for (index, byte) in text.iter_mut().enumerate() {
            // Volatile: the area is changed in the file, after the compiler has seen it.
            // SAFETY: inside the area that the assembly below lays out.
            *byte = unsafe { start.wrapping_add(MAGIC + index).read_volatile() };
        }
        Self { text }
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        let end = self
            .text
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.text.len());
        core::str::from_utf8(&self.text[..end])
            .unwrap_or("")
            .split_ascii_whitespace()
    }

    /// Whether the word stands there alone.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.words().any(|candidate| candidate == word)
    }

    /// What stands behind `key=`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.words()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// What stands behind `key=`, as a decimal number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
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
