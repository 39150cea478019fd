//! Making batches.

use super::{HostOperation, Operation, STEPS, Setup};
use crate::Random;

/// One batch: where it begins, and what happens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The controls.
    pub setup: Setup,
    /// Seed of the MSR bitmap: see [`Setup::intercepts`].
    pub seed: u64,
    /// RVI and SVI at the first entry.
    pub status: (u8, u8),
    /// What happens.
    pub operations: [Operation; STEPS],
    page: Random,
}

impl Batch {
    /// The batch of this number under these controls.
    #[must_use]
    pub fn new(seed: u64, setup: Setup, number: u64) -> Self {
        let name = setup
            .name
            .bytes()
            .fold(0, |sum: u64, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
        let mut random = Random::part(seed ^ name, number);
        let mut batch = Self {
            setup,
            seed: random.bits(),
            status: (0, 0),
            operations: [Operation::ReadCr8; STEPS],
            page: Random::new(random.bits()),
        };
        let (mut requested, mut served) = (0, 0);
        batch.initial_page(|offset, word| {
            let highest =
                |word: u32| word.checked_ilog2().map_or(0, |bit| (offset & 0x70) * 2 + bit as u16);
            match offset {
                _ if offset & 0xc != 0 => {}
                0x100..0x180 => served = served.max(highest(word)),
                0x200..0x280 => requested = requested.max(highest(word)),
                _ => {}
            }
        });
        batch.status = (requested as u8, served as u8);
        let mut generator = Generator { random, setup, interrupts: false };
        batch.operations.fill_with(|| generator.operation());
        batch
    }

    /// Gives each word of the page as it is before the first entry.
    pub fn initial_page(&self, mut store: impl FnMut(u16, u32)) {
        let mut random = self.page.clone();
        // So that a batch has many vectors, or few.
        let sparse = random.below(3);
        for offset in (0..0x1000).step_by(4) {
            let bits = random.bits();
            let word = match offset & 0xff0 {
                0x080 if offset & 0xc == 0 => vtpr(bits),
                0x100..0x180 | 0x200..0x280 => {
                    let shown =
                        (0..sparse + 1).fold(bits as u32, |word, _| word & random.bits() as u32);
                    let empty = random.below(4) <= sparse;
                    if empty { 0 } else { shown & legal(offset) }
                }
                0..0x400 => bits as u32,
                _ => 0,
            };
            store(offset, word);
        }
    }
}

/// Low more often than not, so that interrupts get through.
fn vtpr(bits: u64) -> u32 {
    let shift = bits >> 8 & 7;
    (bits as u32 & 0xff) >> shift
}

/// The vectors of a word of VISR or VIRR that the guest's handlers take: those for which the processor pushes an error code
/// when they are exceptions are left out.
fn legal(offset: u16) -> u32 {
    if offset & 0x7c == 0 { !PUSH_ERROR_CODE } else { u32::MAX }
}

/// Vectors 17, 21, 29 and 30.
const PUSH_ERROR_CODE: u32 = 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

struct Generator {
    random: Random,
    setup: Setup,
    /// The guest's RFLAGS.IF when the operation begins.
    interrupts: bool,
}

impl Generator {
    fn operation(&mut self) -> Operation {
        match self.random.below(100) {
            0..10 => {
                self.interrupts = self.random.below(3) != 0;
                Operation::Interrupts(self.interrupts)
            }
            10..17 => Operation::WriteCr8(self.cr8()),
            17..20 => Operation::ReadCr8,
            20..45 => Operation::Host(self.host()),
            _ if self.setup.apic_accesses => self.window(),
            _ if self.setup.x2apic => self.msr(),
            roll if roll < 70 => Operation::WriteCr8(self.cr8()),
            _ => Operation::Host(self.host()),
        }
    }

    fn cr8(&mut self) -> u64 {
        if self.random.one_in(20) { self.random.below(1 << 12) } else { self.random.below(16) }
    }

    fn host(&mut self) -> HostOperation {
        use HostOperation as H;
        let Setup { delivery, posted, tpr_shadow, .. } = self.setup;
        let vector = self.vector();
        match self.random.below(16) {
            0..5 if delivery => H::Request(vector),
            5 if delivery && self.random.one_in(4) => H::Status(vector, self.vector()),
            5 | 6 if delivery => H::EoiExit(vector, self.random.below(3) != 0),
            7..11 if posted => H::Post(vector, self.random.below(4) != 0),
            0..5 if tpr_shadow => H::Threshold(self.random.below(16) as u8),
            11 => H::Window,
            12 if self.interrupts => H::Inject(vector),
            13 if self.interrupts => H::Interrupt,
            14 => {
                let offset = (self.random.below(0x40) as u16) << 4;
                let bits = self.random.bits();
                match offset {
                    0x080 => H::Page(offset, vtpr(bits)),
                    // RVI and SVI would no longer be the highest of what these hold.
                    0x100..0x180 | 0x200..0x280 => H::Nothing,
                    _ => H::Page(offset, bits as u32),
                }
            }
            _ => H::Nothing,
        }
    }

    fn window(&mut self) -> Operation {
        let slot = (self.random.below(0x40) as u16) << 4;
        match self.random.below(24) {
            0 => Operation::Load(self.random.below(0x1000) as u16 & 0xffc, 4),
            1 => {
                let slot = self.random.below(0x100) as u16 * 0x10;
                self.store(slot)
            }
            2 => {
                let width = self.random.pick(&[1, 2, 8]);
                Operation::Load(self.inside(slot, width), width)
            }
            3 => self.wide_or_narrow(slot),
            4..10 => Operation::Load(slot, 4),
            10..15 => Operation::Store(0x0b0, 4, self.random.below(8) / 7),
            15..18 => Operation::Store(0x300, 4, self.command().into()),
            18..20 => Operation::Store(0x080, 4, u64::from(vtpr(self.random.bits()))),
            _ => self.store(slot),
        }
    }

    /// A store of a register, with a value that fits it.
    fn store(&mut self, slot: u16) -> Operation {
        let bits = self.random.bits() & 0xffff_ffff;
        let value = match slot {
            0x300 => self.command().into(),
            0x080 => vtpr(bits).into(),
            _ => bits,
        };
        Operation::Store(slot, 4, value)
    }

    /// A store that is not of 4 bytes. Those of the ICR's low half would command what no vector list bounds.
    fn wide_or_narrow(&mut self, slot: u16) -> Operation {
        let width = self.random.pick(&[1, 2, 8]);
        let slot = if slot == 0x300 { 0x310 } else { slot };
        let offset = self.inside(slot, width);
        Operation::Store(
            offset,
            width,
            self.random.bits() & u64::MAX >> (64 - 8 * u32::from(width)),
        )
    }

    /// A place in a slot of 16 bytes, aligned for an access of `width` bytes.
    fn inside(&mut self, slot: u16, width: u8) -> u16 {
        let within = self.random.below(16 / u64::from(width)) as u16;
        slot + within * u16::from(width)
    }

    fn msr(&mut self) -> Operation {
        let any = 0x800 + self.random.below(0x40) as u32;
        match self.random.below(20) {
            0..5 => Operation::ReadMsr(any),
            5 => Operation::ReadMsr(0x800 + self.random.below(0x100) as u32),
            6 => Operation::WriteMsr(any, self.random.bits() & 0xff),
            7..13 => Operation::WriteMsr(0x80b, self.random.below(16) / 15),
            13..17 => {
                let vector = u64::from(self.vector());
                let odd = self.random.pick(&[0, 0, 0, 0, 0, 1 << 8, 1 << 32, 1 << 31]);
                let low = self.random.one_in(8);
                Operation::WriteMsr(0x83f, if low { vector & 0xf } else { vector | odd })
            }
            _ => {
                let odd = self.random.pick(&[0, 0, 0, 0, 0, 1 << 8, 1 << 32]);
                Operation::WriteMsr(0x808, u64::from(vtpr(self.random.bits())) | odd)
            }
        }
    }

    /// A value for the low half of the ICR: a self-IPI, nearly one, or anything.
    fn command(&mut self) -> u32 {
        const SELF: u32 = 1 << 18;
        const VECTOR_ONLY: u32 = 0xff;
        let vector = u32::from(self.vector());
        let indifferent = self.random.bits() as u32 & (1 << 14 | 1 << 11);
        let command = SELF | indifferent | vector;
        match self.random.below(8) {
            0 => command & !VECTOR_ONLY | vector & 0xf,
            1..3 => command ^ 1 << (8 + self.random.below(24)),
            3 => self.random.bits() as u32 & !VECTOR_ONLY | vector,
            _ => command,
        }
    }

    /// A vector that the guest's handlers take.
    fn vector(&mut self) -> u8 {
        match 16 + self.random.below(240) as u8 {
            vector @ (17 | 21 | 29 | 30) => vector + 0x40,
            vector => vector,
        }
    }
}
