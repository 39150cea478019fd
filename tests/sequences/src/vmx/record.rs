//! What is observed of one step.

use core::fmt;

use crate::Digest;

/// One step's observations, equal on both sides if the processor and the model agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What a read gave.
    pub value: u64,
    /// #GP(0).
    pub fault: bool,
    /// Vectors that the guest took, in order.
    pub taken: List<u8, 16>,
    /// Exits, in order, but for the VMCALL that a host operation begins with.
    pub exits: List<Exit, 16>,
    /// A digest of the page's first KiB.
    pub page: u64,
}

/// One exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Basic exit reason.
    pub reason: u16,
    /// Guest RIP is behind the operation.
    pub done: bool,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest interrupt status; 0 without virtual-interrupt delivery.
    pub status: u16,
    /// Interruption information.
    pub interruption: u32,
}

/// The first `N` of some things, and how many there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List<T, const N: usize> {
    items: [T; N],
    count: usize,
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { items: [T::default(); N], count: 0 }
    }

    /// Adds one.
    pub fn push(&mut self, item: T) {
        if let Some(slot) = self.items.get_mut(self.count) {
            *slot = item;
        }
        self.count += 1;
    }

    /// Those that are kept.
    #[must_use]
    pub fn items(&self) -> &[T] {
        &self.items[..self.count.min(N)]
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    /// Adds the step to a digest.
    pub fn add_to(&self, digest: &mut Digest) {
        digest.add(self.value);
        digest.add(u64::from(self.fault) | (self.taken.count() as u64) << 8);
        self.taken.items().iter().for_each(|&vector| digest.add(vector.into()));
        digest.add(self.exits.count() as u64);
        for exit in self.exits.items() {
            digest.add(
                u64::from(exit.reason) | u64::from(exit.done) << 16 | u64::from(exit.status) << 32,
            );
            digest.add(exit.qualification);
            digest.add(exit.interruption.into());
        }
        digest.add(self.page);
    }

    /// The digest of a page: its first KiB, where all registers are.
    pub fn page_digest(mut word: impl FnMut(u16) -> u32) -> u64 {
        let mut digest = Digest::new();
        for offset in (0..0x400).step_by(8) {
            digest.add(u64::from(word(offset)) | u64::from(word(offset + 4)) << 32);
        }
        digest.value()
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "value={:x} fault={} taken=", self.value, u8::from(self.fault))?;
        self.taken.items().iter().try_for_each(|vector| write!(f, "{vector:02x},"))?;
        f.write_str(" exits=")?;
        for exit in self.exits.items() {
            let Exit { reason, done, qualification, status, interruption } = exit;
            let when = if *done { "after" } else { "before" };
            write!(f, "{reason}:{when}:{qualification:x}:{status:04x}:{interruption:x},")?;
        }
        write!(f, " page={:016x}", self.page)
    }
}
