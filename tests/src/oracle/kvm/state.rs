//! What can be seen of an APIC, in one shape for both sides.

use vlapic_core::{ApicBase, Mode, Register};

/// What can be seen of one vCPU's APIC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The first word of each 16-byte slot up to 3F0. The current count is 1 if it runs and 0 if
    /// not; what cannot be read is 0.
    pub words: [u32; 64],
    /// What is not in the page.
    pub events: Events,
}

/// What a message may do to a vCPU beside its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// An NMI was latched.
    pub nmi: bool,
    /// An SMI was latched.
    pub smi: bool,
    /// It started at this page.
    pub startup: Option<u8>,
    /// It waits for a SIPI.
    pub waiting: bool,
}

/// What an operation answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// #GP.
    pub fault: bool,
    /// What a read gave.
    pub value: Option<u64>,
    /// How many APICs accepted an MSI.
    pub accepted: Option<u32>,
    /// The vector whose EOI was broadcast.
    pub eoi: Option<u8>,
    /// The access met no APIC.
    pub outside: bool,
}

impl core::fmt::Debug for View {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let words = (0u32..).zip(self.words).filter(|(_, word)| *word != 0);
        f.debug_map()
            .entries(words.map(|(slot, word)| (slot << 4, word)))
            .entry(&"events", &self.events)
            .finish()
    }
}

impl View {
    pub(super) fn word(&self, register: Register) -> u32 {
        self.words[usize::from(register.offset() >> 4)]
    }

    pub(super) fn set_word(&mut self, register: Register, value: u32) {
        self.words[usize::from(register.offset() >> 4)] = value;
    }

    pub(super) fn enabled(&self) -> bool {
        self.word(Register::Svr) & 0x100 != 0
    }

    /// With `vector` in IRR, its TMR bit as `level` says.
    pub(super) fn with_request(mut self, vector: u8, level: bool) -> Self {
        let (slot, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        self.words[0x20 + slot] |= bit;
        if level {
            self.words[0x18 + slot] |= bit;
        } else {
            self.words[0x18 + slot] &= !bit;
        }
        self
    }

    /// As INIT leaves it.
    pub(super) fn after_init(mut self, base: ApicBase) -> Self {
        let (id, ldr, version) =
            (self.word(Register::Id), self.word(Register::Ldr), self.word(Register::Version));
        self.words = [0; 64];
        self.set_word(Register::Id, id);
        self.set_word(Register::Version, version);
        if base.mode() == Mode::X2Apic {
            self.set_word(Register::Ldr, ldr);
        }
        self.set_word(Register::Dfr, 0xFFFF_FFFF);
        self.set_word(Register::Svr, 0xFF);
        for slot in 0x32..=0x37 {
            self.words[slot] = 0x1_0000;
        }
        self.events.waiting = !base.bootstrap();
        self
    }
}
