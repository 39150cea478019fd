//! Operations above a driver: a guest that uses its local APIC, and a host that posts to it.
//!
//! With the driver at work it must not matter how much of this the processor does by itself.

use crate::{Operation, Random};

/// Operations of one batch. Batches follow each other: each begins where the last one ended.
pub const STEPS: usize = 64;

/// The vector of upcalls.
pub const UPCALL: u8 = 0xf3;

/// What the host does between two entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostOperation {
    /// Nothing: an exit and an entry.
    Nothing,
    /// Requests an edge-triggered vector.
    Edge(u8),
    /// Requests a level-triggered vector.
    Level(u8),
    /// Another CPU requests a vector, level-triggered or not, while the guest runs with interrupts on and waits for it to
    /// have done so.
    Remote(u8, bool),
    /// A device's message: fixed or lowest priority, to a logical destination.
    Message {
        /// The vector, edge-triggered.
        vector: u8,
        /// Of lowest priority.
        lowest: bool,
        /// The destination.
        destination: u8,
    },
    /// Sets the upcall's pending byte and notifies.
    Upcall,
    /// Clears the pending byte.
    ClearPending,
}

/// Makes operations, without end.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Random,
    x2apic: bool,
    /// The guest's RFLAGS.IF.
    interrupts: bool,
    made: u64,
}

/// Page offsets.
const TPR: u16 = 0x080;
const EOI: u16 = 0x0b0;
const SVR: u16 = 0x0f0;
const ESR: u16 = 0x280;
const ICR_LOW: u16 = 0x300;
const ICR_HIGH: u16 = 0x310;
const LVT_TIMER: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;
const SELF_IPI: u16 = 0x3f0;

impl Generator {
    /// The operations of `seed`, of a guest in xAPIC or x2APIC mode.
    #[must_use]
    pub fn new(seed: u64, x2apic: bool) -> Self {
        Self { random: Random::part(seed, x2apic.into()), x2apic, interrupts: false, made: 0 }
    }

    /// The next one.
    pub fn operation(&mut self) -> Operation<HostOperation> {
        self.made += 1;
        // Whatever keeps interrupts out ends every now and then.
        match self.made % 32 {
            1 => return self.write(SVR, 0x1ff),
            2 => return self.write(TPR, 0),
            3 => {
                self.interrupts = true;
                return Operation::Interrupts(true);
            }
            4 if self.made % 64 == 4 => return self.write(INITIAL_COUNT, 0xffff_ffff),
            _ => {}
        }
        let (vector, bits) = (self.vector(), self.random.bits());
        match self.random.below(100) {
            0..18 => self.write(EOI, 0),
            18..25 if self.interrupts => {
                Operation::Host(HostOperation::Remote(vector, bits & 7 == 0))
            }
            18..27 => Operation::Host(HostOperation::Edge(vector)),
            27..32 => Operation::Host(HostOperation::Level(vector)),
            32..38 => self.write(TPR, bits & 0xff >> (bits >> 8 & 7)),
            38..42 => Operation::WriteCr8(bits >> 8 & 0xf >> (bits & 3)),
            42..44 => Operation::ReadCr8,
            44..51 => {
                self.interrupts = !bits.is_multiple_of(3);
                Operation::Interrupts(self.interrupts)
            }
            51..60 => self.command(),
            60..63 => self.self_ipi(),
            63..66 => {
                let value = self.random.pick(&[0x1ff, 0x11f, 0x10ff, 0xff, 0x3ff]);
                self.write(SVR, value)
            }
            66..79 => self.read(),
            79..88 => self.any_write(),
            88..90 => self.write(ESR, 0),
            90..92 => Operation::Host(HostOperation::Upcall),
            92 => Operation::Host(HostOperation::ClearPending),
            93..96 => Operation::Host(HostOperation::Message {
                vector,
                lowest: bits & 1 != 0,
                destination: self.random.pick(&[1, 2, 3, 0xff]),
            }),
            96..98 => Operation::Host(HostOperation::Nothing),
            _ if self.x2apic => Operation::ReadMsr(0x800 + (bits & 0xff) as u32),
            _ => Operation::Load((bits & 0xffc) as u16, 4),
        }
    }

    /// A write of a register, the way the mode has it.
    fn write(&self, offset: u16, value: u64) -> Operation<HostOperation> {
        if self.x2apic {
            Operation::WriteMsr(0x800 + u32::from(offset >> 4), value)
        } else {
            Operation::Store(offset, 4, value & 0xffff_ffff)
        }
    }

    fn read(&mut self) -> Operation<HostOperation> {
        let offset = (self.random.below(0x40) as u16) << 4;
        if self.x2apic {
            Operation::ReadMsr(0x800 + u32::from(offset >> 4))
        } else {
            Operation::Load(offset, 4)
        }
    }

    /// To any register, but commands only of kinds that leave the guest running.
    fn any_write(&mut self) -> Operation<HostOperation> {
        const TIMER_MASK: u64 = 1 << 16;
        const VECTOR: u64 = 0xff;
        const DELIVERY: u64 = 0x700;
        let offset = (self.random.below(0x40) as u16) << 4;
        let wide = self.random.pick(&[0xff, 0x1_ffff, 0xffff_ffff, u64::MAX]);
        let bits = self.random.bits() & if self.random.one_in(4) { wide } else { 0x1_07ff };
        let vector = u64::from(self.vector());
        let value = match offset {
            ICR_LOW => return self.command(),
            SELF_IPI => return self.self_ipi(),
            // Delivered by the error interrupt and others; an illegal vector now and then is an error itself.
            LVT_TIMER => bits & !VECTOR | vector | TIMER_MASK,
            0x2f0..=0x370 => bits & !(VECTOR | DELIVERY) | vector,
            // So long that it does not expire.
            INITIAL_COUNT => bits | 0xf000_0000,
            0x0d0 | 0x0e0 => bits << 24 & 0xffff_ffff,
            _ => bits,
        };
        self.write(offset, value)
    }

    fn self_ipi(&mut self) -> Operation<HostOperation> {
        let vector = u64::from(self.vector());
        let value = if self.random.one_in(8) { vector & 0xf } else { vector };
        self.write(SELF_IPI, value)
    }

    /// A command to itself, to the other vCPU, or to both.
    fn command(&mut self) -> Operation<HostOperation> {
        let vector = u64::from(self.vector());
        let vector = if self.random.one_in(12) { vector & 0xf } else { vector };
        let target = self.random.pick(&[0, 1, 1, 2, 3, 0xff, 0xffff_ffff]);
        let command = match self.random.below(10) {
            0..4 => 1 << 18 | self.random.below(2) << 14,
            4 => 2 << 18,
            5 => 3 << 18 | 1 << 14,
            6 => 1 << 11 | self.random.below(2) << 8,
            7 => 1 << 18 | 1 << (12 + self.random.below(4)),
            _ => self.random.below(2) << 14,
        };
        match (self.x2apic, self.random.below(3)) {
            (false, 0) => self.write(ICR_HIGH, target << 24),
            (false, _) => self.write(ICR_LOW, command | vector),
            (true, _) => self.write(ICR_LOW, target << 32 | command | vector),
        }
    }

    /// A vector that the guest's handlers take, of few enough that the same ones meet.
    fn vector(&mut self) -> u8 {
        let class = self.random.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 0xb, 0xc, 0xf]);
        class << 4 | self.random.pick(&[0, 2, 6, 0xf])
    }
}
