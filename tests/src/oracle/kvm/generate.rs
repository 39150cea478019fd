//! Operations made from a seed.

use vlapic_core::{ApicBase, IA32_APIC_BASE, Mode, Register};

use super::operation::{Operation, Size};
use super::setup::Setup;

/// A small random generator: the sequence is the seed's (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Mixed, so that seeds close to each other do not begin alike; and never zero.
        let mixed = (seed ^ seed >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self((mixed ^ mixed >> 29) | 1)
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

const WINDOW: u32 = 0xFEE0_0000;

/// The next operation of a sequence on the vCPUs of `setup`, which began in `mode`; in mixed rounds
/// that is not every vCPU's mode. An access in the wrong mode is an operation like another.
pub(super) fn next(random: &mut Random, setup: &Setup, mode: Mode) -> Operation {
    let vcpu = random.below(setup.ids.len() as u64) as usize;
    let xapic = if random.one_in(16) { mode != Mode::XApic } else { mode == Mode::XApic };
    match random.below(100) {
        0..28 if xapic => store(vcpu, Register::IcrLow, icr(random, setup, true) as u32),
        0..28 => {
            let value = icr(random, setup, false);
            write(random, vcpu, Register::IcrLow.msr(), value)
        }
        28..38 => Operation::Msi { address: msi_address(random, setup), data: msi_data(random) },
        38..53 => Operation::Take { vcpu },
        53..63 => register(random, vcpu, Register::Eoi, 0, xapic),
        63..67 => {
            let value = random.below(256) as u32;
            register(random, vcpu, Register::Tpr, value, xapic)
        }
        67..68 => Operation::WriteCr8 { vcpu, value: random.below(16) as u8 },
        68..72 => {
            let enable = u32::from(!random.one_in(4)) << 8;
            let focus = u32::from(random.one_in(16)) << 9;
            let suppress = u32::from(random.one_in(5)) << 12;
            let value = enable | focus | suppress | 0xF0 | random.below(16) as u32;
            register(random, vcpu, Register::Svr, value, xapic)
        }
        72..76 if xapic => {
            let (register, value) = addressing(random, setup);
            store(vcpu, register, value)
        }
        72..76 => {
            let value = u64::from(vector(random));
            write(random, vcpu, Register::SelfIpi.msr(), value)
        }
        76..83 => read(random, vcpu, xapic),
        83..91 => {
            let timer = random.one_in(5);
            let number =
                if timer { random.pick(&[0x32, 0x38, 0x3E]) } else { random.below(0x40) as u32 };
            let value = register_value(random, number);
            if xapic {
                let address = WINDOW + 0x10 * number;
                Operation::Store { vcpu, address, size: size(random), value: value as u32 }
            } else {
                write(random, vcpu, 0x800 + number, value)
            }
        }
        91..94 => walking_bit(random, vcpu, xapic),
        94..96 => Operation::Restore { vcpu, seed: random.bits() },
        96 if random.one_in(4) => Operation::Timer {
            vcpu,
            mode: random.below(3) as u8,
            vector: vector(random),
            masked: random.one_in(4),
            divide: random.below(16) as u8 & 0xB,
            expires: !random.one_in(3),
        },
        96..98 => life(random, vcpu, xapic, setup),
        98 => base(random, vcpu, mode),
        _ => read(random, vcpu, !xapic),
    }
}

/// One bit, anywhere.
fn walking_bit(random: &mut Random, vcpu: usize, xapic: bool) -> Operation {
    let offset = if xapic { random.below(0xFFD) } else { random.below(0x100) << 4 } as u32;
    let bit = 1 << random.below(if xapic { 32 } else { 64 });
    match offset & 0xFF0 {
        // It would be a timer that expires, or the reserved mode.
        0x320 | 0x380 => register(random, vcpu, Register::Eoi, 0, xapic),
        _ if xapic => {
            let address = WINDOW + offset;
            Operation::Store { vcpu, address, size: Size::Dword, value: bit as u32 }
        }
        _ => write(random, vcpu, 0x800 + (offset >> 4), bit),
    }
}

/// What a guest's first steps are: APICs enabled, most of them, and in xAPIC mode all with logical
/// destinations of one model.
pub(super) fn prologue(
    random: &mut Random,
    setup: &Setup,
    mode: impl Fn(usize) -> Mode,
) -> Vec<Operation> {
    let mut list = Vec::new();
    if random.one_in(6) {
        return list;
    }
    let model = random.pick(&[0xFFFF_FFFF, 0xFFFF_FFFF, 0x0FFF_FFFF, 0x0FFF_FFFF, 0x7FFF_FFFF]);
    for vcpu in 0..setup.ids.len() {
        let xapic = mode(vcpu) == Mode::XApic;
        if !random.one_in(6) {
            list.push(register(random, vcpu, Register::Svr, 0x1FF, xapic));
        }
        if xapic {
            let flat = 1 << vcpu;
            let cluster = (vcpu as u32 & 1) << 4 | 1 << (vcpu >> 1);
            let ldr = if model == 0xFFFF_FFFF { flat } else { cluster };
            list.push(store(vcpu, Register::Dfr, model));
            list.push(store(vcpu, Register::Ldr, ldr << 24));
        }
    }
    list
}

/// A write of `value` in the way of the mode.
fn register(random: &mut Random, vcpu: usize, at: Register, value: u32, xapic: bool) -> Operation {
    if xapic { store(vcpu, at, value) } else { write(random, vcpu, at.msr(), u64::from(value)) }
}

fn store(vcpu: usize, register: Register, value: u32) -> Operation {
    let address = WINDOW + u32::from(register.offset());
    Operation::Store { vcpu, address, size: Size::Dword, value }
}

/// Mostly by ioctl, which is quicker.
fn write(random: &mut Random, vcpu: usize, msr: u32, value: u64) -> Operation {
    Operation::WriteMsr { vcpu, msr, value, in_guest: random.one_in(16) }
}

fn read(random: &mut Random, vcpu: usize, xapic: bool) -> Operation {
    let count = Register::CurrentCount;
    if xapic {
        let offset = match random.below(16) {
            15 => u32::from(count.offset()),
            0..4 => random.below(0xFFD) as u32,
            _ => random.below(0x40) as u32 * 0x10,
        };
        return Operation::Load { vcpu, address: WINDOW + offset, size: size(random) };
    }
    let msr = match random.below(16) {
        0 => IA32_APIC_BASE,
        1 => count.msr(),
        _ => 0x800 + random.below(0x100) as u32,
    };
    Operation::ReadMsr { vcpu, msr, in_guest: random.one_in(8) }
}

fn size(random: &mut Random) -> Size {
    random.pick(&[Size::Dword, Size::Dword, Size::Dword, Size::Dword, Size::Word, Size::Byte])
}

/// The registers that say who is addressed, and the half of ICR that says whom.
fn addressing(random: &mut Random, setup: &Setup) -> (Register, u32) {
    match random.below(8) {
        0 => {
            let id = random.below(setup.ids.len() as u64 + 1) as u32;
            (Register::Id, id << 24 | random.bits() as u32 & 0x00FF_FFFF)
        }
        1..4 => {
            let flat = 1 << random.below(8);
            let cluster = (random.below(3) << 4 | 1 << random.below(4)) as u32;
            let any = random.bits() as u32 & 0xFF;
            (Register::Ldr, random.pick(&[flat, flat, cluster, cluster, any]) << 24)
        }
        4 => {
            let model = random.pick(&[0xFFFF_FFFF, 0xF000_0000, 0x0FFF_FFFF, 0, 0x7000_0000]);
            (Register::Dfr, model)
        }
        _ => {
            let logical = random.one_in(2);
            (Register::IcrHigh, destination(random, setup, logical) << 24)
        }
    }
}

/// INIT and SIPI. A vCPU whose guest sends itself an INIT would not come back: that is done by ioctl.
fn life(random: &mut Random, vcpu: usize, xapic: bool, setup: &Setup) -> Operation {
    let mode = random.pick(&[5, 6, 6, 6]);
    let level = random.pick(&[0x4000, 0x4000, 0x4000, 0, 0x8000, 0xC000]);
    let shorthand = random.pick(if xapic { &[3] } else { &[0, 0, 3, 3, 3, 1, 2] });
    let low = random.below(256) | mode << 8 | level | shorthand << 18;
    let logical = random.one_in(3);
    if xapic {
        return store(vcpu, Register::IcrLow, low as u32 | u32::from(logical) << 11);
    }
    let destination = u64::from(destination(random, setup, logical));
    let value = destination << 32 | u64::from(logical) << 11 | low;
    Operation::WriteMsr { vcpu, msr: Register::IcrLow.msr(), value, in_guest: false }
}

/// Modes, addresses, and bits that are reserved.
fn base(random: &mut Random, vcpu: usize, mode: Mode) -> Operation {
    let bootstrap = u64::from(vcpu == 0) << 8;
    let common = ApicBase::DEFAULT_ADDRESS | bootstrap;
    let value = match random.below(12) {
        0 | 1 => common,
        2 => common | 0x400,
        3..5 => common | 0x800,
        5..7 => common | 0xC00,
        7 => (common | 0x800) ^ 1 << random.below(64),
        8 => 0xFED4_0000 | bootstrap | 0x800,
        // Back to where the round was.
        _ if mode == Mode::XApic => common | 0x800,
        _ => common | 0xC00,
    };
    Operation::WriteMsr { vcpu, msr: IA32_APIC_BASE, value, in_guest: true }
}

/// Mostly few vectors, so that they meet each other; sometimes any.
fn vector(random: &mut Random) -> u8 {
    if random.one_in(4) {
        random.bits() as u8
    } else {
        random.pick(&[0x31, 0x32, 0x41, 0x51, 0x5F, 0x61, 0x92, 0xE0, 0xF3, 0xFF])
    }
}

fn destination(random: &mut Random, setup: &Setup, logical: bool) -> u32 {
    let vcpus = setup.ids.len() as u64;
    match random.below(10) {
        0 => 0xFFFF_FFFF,
        1 => random.bits() as u32,
        // As xAPIC-mode APICs see it, somebody's.
        2 => random.pick(setup.ids) + 0x100 * random.below(3) as u32,
        3 => 0xFF,
        4..6 if logical => {
            let id = random.pick(setup.ids);
            (id >> 4) << 16 | 1 << (id & 0xF) | random.below(4) as u32
        }
        6 | 7 if logical => (random.below(2) << 4 | random.below(16)) as u32,
        _ if logical => random.below(1 << vcpus) as u32,
        _ => random.pick(setup.ids),
    }
}

/// In xAPIC mode only the low half counts; the high one has its own register.
fn icr(random: &mut Random, setup: &Setup, xapic: bool) -> u64 {
    let logical = random.one_in(2);
    let shorthand = random.pick(&[0, 0, 0, 1, 2, 3]);
    let few: &[u64] = &[0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 7];
    let lowest: &[u64] = &[0, 0, 0, 1, 1, 4];
    let mode = if xapic && random.one_in(2) { random.pick(lowest) } else { random.pick(few) };
    let level = u64::from(random.one_in(2)) << 14;
    let trigger = u64::from(random.one_in(12)) << 15;
    // Not in the delivery mode: INIT and SIPI have their own place.
    let stray = if random.one_in(20) { 1 << random.below(32) & !0x700 } else { 0 };
    let low = u64::from(vector(random)) | mode << 8 | u64::from(logical) << 11 | level | trigger;
    u64::from(destination(random, setup, logical)) << 32 | low | shorthand << 18 | stray
}

fn msi_address(random: &mut Random, setup: &Setup) -> u32 {
    let logical = random.one_in(2);
    let destination = destination(random, setup, logical) & 0xFF;
    let hint = u32::from(random.one_in(4)) << 3;
    0xFEE0_0000 | destination << 12 | u32::from(logical) << 2 | hint
}

fn msi_data(random: &mut Random) -> u32 {
    let mode = random.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7]);
    let level = random.pick(&[0, 0, 0x4000, 0x4000, 0xC000, 0xC000, 0xC000, 0x8000]);
    u32::from(vector(random)) | mode << 8 | level
}

/// Something sensible for register `number`, but for reserved ones.
fn register_value(random: &mut Random, number: u32) -> u64 {
    match number {
        0x30 => 0,
        // The timer modes that exist, so that no time passes unseen.
        0x32 => u64::from(vector(random)) | random.below(2) << 16 | random.below(3) << 17,
        0x2F | 0x33..=0x37 => {
            let mode = random.pick(&[0, 0, 0x400, 0x700]);
            let read_only = if random.one_in(6) { 0x5000 } else { 0 };
            let keep = 0xFF | 0x1_1000 | modes_of(number);
            (u64::from(vector(random)) | random.below(2) << 16 | mode | read_only) & keep
        }
        0x38 => random.pick(&[0, 0xFFFF_FFFF]),
        0x3E => random.below(16) & 0xB,
        _ => random.bits() & 0x1FF,
    }
}

/// Delivery mode and remote IRR, for the entries that have them.
const fn modes_of(number: u32) -> u64 {
    match number {
        0x37 => 0,
        0x35 | 0x36 => 0x4700,
        _ => 0x700,
    }
}
