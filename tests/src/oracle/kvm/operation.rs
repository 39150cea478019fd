//! What is done to both sides.

use vlapic_core::Register;

/// One operation on one vCPU, or on the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// WRMSR of an x2APIC register.
    Write {
        /// The vCPU.
        vcpu: usize,
        /// 800 to 8FF.
        msr: u32,
        /// The value.
        value: u64,
    },
    /// RDMSR of an x2APIC register.
    Read {
        /// The vCPU.
        vcpu: usize,
        /// 800 to 8FF.
        msr: u32,
    },
    /// A device's message.
    Msi {
        /// Low half of the address.
        address: u32,
        /// The data.
        data: u32,
    },
    /// The vCPU takes its highest deliverable interrupt.
    Take {
        /// The vCPU.
        vcpu: usize,
    },
}

/// A small random generator: the sequence is the seed's (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.bits() >> 16) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

const SVR: u32 = Register::Svr.msr();
const ICR: u32 = Register::IcrLow.msr();

impl Operation {
    /// The next operation of a sequence on `vcpus` vCPUs.
    pub fn next(random: &mut Random, vcpus: usize) -> Self {
        let vcpu = random.below(vcpus as u64) as usize;
        match random.below(100) {
            0..30 => Self::Write { vcpu, msr: ICR, value: icr(random, vcpus) },
            30..42 => Self::Msi { address: msi_address(random, vcpus), data: msi_data(random) },
            42..60 => Self::Take { vcpu },
            60..72 => Self::Write { vcpu, msr: Register::Eoi.msr(), value: 0 },
            72..78 => Self::Write { vcpu, msr: Register::Tpr.msr(), value: random.below(256) },
            78..81 => {
                let enable = u64::from(!random.one_in(3)) << 8;
                Self::Write { vcpu, msr: SVR, value: enable | 0xF0 | random.below(16) }
            }
            81..84 => {
                Self::Write { vcpu, msr: Register::SelfIpi.msr(), value: u64::from(vector(random)) }
            }
            84..90 => Self::Read { vcpu, msr: 0x800 + random.below(0x100) as u32 },
            90..96 => {
                let msr = 0x800 + random.below(0x40) as u32;
                Self::Write { vcpu, msr, value: register_value(random, msr) }
            }
            _ => {
                let msr = 0x800 + random.below(0x100) as u32;
                Self::Write { vcpu, msr, value: 1 << random.below(64) }
            }
        }
    }
}

/// Mostly few vectors, so that they meet each other; sometimes any.
fn vector(random: &mut Random) -> u8 {
    if random.one_in(4) {
        random.bits() as u8
    } else {
        random.pick(&[0x31, 0x32, 0x41, 0x51, 0x5F, 0x61, 0x92, 0xE0, 0xF3, 0xFF])
    }
}

fn destination(random: &mut Random, vcpus: usize, logical: bool) -> u32 {
    match random.below(8) {
        0 => 0xFFFF_FFFF,
        1 => random.bits() as u32,
        2 => random.below(0x200) as u32,
        _ if logical => random.below(1 << vcpus) as u32,
        _ => random.below(vcpus as u64 + 1) as u32,
    }
}

fn icr(random: &mut Random, vcpus: usize) -> u64 {
    let logical = random.one_in(2);
    let shorthand = random.pick(&[0, 0, 0, 1, 2, 3]);
    let mode = random.pick(&[0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 7]);
    let level = u64::from(random.one_in(2)) << 14;
    let trigger = u64::from(random.one_in(12)) << 15;
    // Not in the delivery mode: INIT and SIPI would be for a vCPU that runs.
    let stray = if random.one_in(20) { 1 << random.below(32) & !0x700 } else { 0 };
    let low = u64::from(vector(random)) | mode << 8 | u64::from(logical) << 11 | level | trigger;
    u64::from(destination(random, vcpus, logical)) << 32 | low | shorthand << 18 | stray
}

fn msi_address(random: &mut Random, vcpus: usize) -> u32 {
    let logical = random.one_in(2);
    let destination = destination(random, vcpus, logical) & 0xFF;
    let hint = u32::from(random.one_in(4)) << 3;
    0xFEE0_0000 | destination << 12 | u32::from(logical) << 2 | hint
}

fn msi_data(random: &mut Random) -> u32 {
    let mode = random.pick(&[0, 0, 0, 0, 1]);
    let level = if random.one_in(3) { 0xC000 } else { 0 };
    u32::from(vector(random)) | mode << 8 | level
}

fn register_value(random: &mut Random, msr: u32) -> u64 {
    match msr {
        0x830 => 0,
        // LVT entries and timer: the modes that exist, so that no time passes unseen.
        0x832 => u64::from(vector(random)) | random.below(2) << 16 | random.below(3) << 17,
        0x82F | 0x833..=0x837 => u64::from(vector(random)) | random.below(2) << 16,
        0x838 => random.pick(&[0, 0xFFFF_FFFF]),
        0x83E => random.below(16) & 0xB,
        _ => random.bits() & 0x1FF,
    }
}
