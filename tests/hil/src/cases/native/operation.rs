//! What is done to both APICs.

use core::fmt;

use vlapic_core::Mode;

use super::physical::UNUSABLE;
use super::random::Random;
use super::subject::Subject;
use crate::machine::identity::Machine;
use crate::machine::smp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// A write to the register at an offset of the page.
    Write { offset: u16, value: u64 },
    /// A read.
    Read { offset: u16 },
    /// Both halves of ICR, the low one last.
    Command { destination: u32, low: u32 },
    /// The processor takes an interrupt, if one is deliverable.
    Take,
    /// MOV to CR8.
    Cr8(u64),
    /// WRMSR of IA32_APIC_BASE with these bits changed; never to another mode or page.
    Base(u64),
    /// WRMSR of IA32_TSC_DEADLINE, to a time that does not come.
    Deadline(u64),
    /// The timer counts to its end.
    Count { lvt: u32, divide: u32 },
    /// A deadline that has passed is armed.
    Passed { lvt: u32 },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, value } => write!(f, "write({offset:#x},{value:#x})"),
            Self::Read { offset } => write!(f, "read({offset:#x})"),
            Self::Command { destination, low } => write!(f, "icr({destination:#x},{low:#x})"),
            Self::Take => f.write_str("take"),
            Self::Cr8(value) => write!(f, "cr8({value})"),
            Self::Base(bits) => write!(f, "base(^{bits:#x})"),
            Self::Deadline(value) => write!(f, "deadline({value:#x})"),
            Self::Count { lvt, divide } => write!(f, "count({lvt:#x},{divide:#x})"),
            Self::Passed { lvt } => write!(f, "passed({lvt:#x})"),
        }
    }
}

pub(super) const TPR: u16 = 0x80;
pub(super) const EOI: u16 = 0xb0;
pub(super) const LDR: u16 = 0xd0;
pub(super) const DFR: u16 = 0xe0;
pub(super) const SVR: u16 = 0xf0;
pub(super) const ESR: u16 = 0x280;
pub(super) const CMCI: u16 = 0x2f0;
pub(super) const ICR: u16 = 0x300;
pub(super) const ICR_HIGH: u16 = 0x310;
pub(super) const LVT_TIMER: u16 = 0x320;
pub(super) const LVT_LINT0: u16 = 0x350;
pub(super) const LVT_ERROR: u16 = 0x370;
pub(super) const INITIAL_COUNT: u16 = 0x380;
pub(super) const CURRENT_COUNT: u16 = 0x390;
pub(super) const DIVIDE: u16 = 0x3e0;
pub(super) const SELF_IPI: u16 = 0x3f0;

pub(super) const MASKED: u32 = 1 << 16;
/// One-shot, periodic, TSC-deadline in bits 18:17 of the timer's entry.
pub(super) const PERIODIC: u32 = 1 << 17;
pub(super) const TSC_DEADLINE: u32 = 2 << 17;

/// A TSC value that no run lives to see.
const NEVER: u64 = 1 << 62;
/// Initial counts that no episode lives to see the end of.
const LONG: [u64; 2] = [0xffff_ffff, 0xf000_0000];
const CODES: [u32; 8] = [0, 1, 2, 3, 8, 9, 10, 11];

impl Operation {
    /// The next operation of a sequence.
    pub(super) fn next(random: &mut Random, subject: &Subject) -> Self {
        let x2apic = subject.mode == Mode::X2Apic;
        match random.below(100) {
            0..26 => command(random, subject),
            26..46 => Self::Take,
            46..60 => Self::Write { offset: EOI, value: if x2apic { 0 } else { random.bits() } },
            60..66 => Self::Write { offset: TPR, value: random.below(256) },
            66..68 => Self::Cr8(random.below(16)),
            68..72 => Self::Write { offset: SVR, value: svr(random) },
            72..74 => Self::Write { offset: ESR, value: if x2apic { 0 } else { random.bits() } },
            74..78 if x2apic => Self::Write { offset: SELF_IPI, value: u64::from(vector(random)) },
            74..76 => Self::Write { offset: LDR, value: random.bits() },
            76..78 => Self::Write { offset: DFR, value: dfr(random) },
            78..84 => entry(random, subject),
            84..88 => timer(random, subject),
            88..89 => Self::Base(reserved_base_bit(random, subject)),
            89..91 => Self::Count { lvt: counting(random), divide: random.pick(&CODES) },
            91..92 if subject.profile.tsc_deadline() => {
                Self::Passed { lvt: TSC_DEADLINE | u32::from(quiet_vector(random)) }
            }
            91..95 => Self::Read { offset: slot(random) },
            _ => stray(random, subject),
        }
    }
}

/// Mostly few vectors, so that they meet each other; sometimes any that an interrupt may have.
fn vector(random: &mut Random) -> u8 {
    if !random.one_in(4) {
        return random.pick(&[0x31, 0x32, 0x41, 0x51, 0x5f, 0x61, 0x92, 0xe0, 0xf3, 0x10]);
    }
    let vector = random.bits() as u8;
    if UNUSABLE.contains(&vector) { 0x2f } else { vector }
}

/// One that reaches an APIC's IRR for sure.
fn quiet_vector(random: &mut Random) -> u8 {
    vector(random).max(0x20)
}

fn svr(random: &mut Random) -> u64 {
    let enable = u64::from(!random.one_in(4)) << 8;
    let suppress = u64::from(random.one_in(8)) << 12;
    enable | suppress | random.pick(&[0xff, 0x2f, 0x61, 0xf3, 0x80])
}

/// The models that exist.
fn dfr(random: &mut Random) -> u64 {
    let low = random.bits() & 0x0fff_ffff;
    low | if random.one_in(2) { 0xf000_0000 } else { 0 }
}

/// Fixed interrupts mostly to this CPU; now and then to others, an NMI, or something invalid.
fn command(random: &mut Random, subject: &Subject) -> Operation {
    let x2apic = subject.mode == Mode::X2Apic;
    let mut low = u32::from(vector(random));
    low |= u32::from(!random.one_in(5)) << 14;
    low |= u32::from(random.one_in(10)) << 15;
    if !x2apic {
        low |= u32::from(random.one_in(8)) << 12;
        low |= random.bits() as u32 & if random.one_in(8) { 0xfff3_2000 } else { 0 };
    } else if random.one_in(10) {
        low |= random.pick(&[1 << 13, 1 << 16, 1 << 17, 1 << 20, 1 << 31]);
    }
    let destination = match random.below(8) {
        0 if subject.others => return to_others(random, subject, low),
        0 | 1 => return strange(random, subject, low),
        2..5 => {
            low |= 1 << 18;
            random.bits() as u32
        }
        5 | 6 => subject.own_destination(),
        _ => return logical(random, subject, low),
    };
    Operation::Command { destination, low }
}

fn logical(random: &mut Random, subject: &Subject, low: u32) -> Operation {
    let destination = match (random.below(4), subject.mode) {
        (0, _) => 0,
        (1, Mode::X2Apic) => subject.id >> 4 << 16 | random.bits() as u32 & 0xffff,
        (_, Mode::X2Apic) => (subject.id >> 4) << 16 | 1 << (subject.id & 15),
        (1, _) => 0x0100_0000 << random.below(8),
        _ => random.bits() as u32 & 0xff00_0000,
    };
    let low = for_others(low);
    // Of several it is not known which one takes it, whatever mode the others are in.
    let alone = smp::cpu_count() == 1;
    let lowest = u32::from(subject.mode == Mode::XApic && alone && random.one_in(4)) << 8;
    Operation::Command { destination, low: low | 1 << 11 | lowest }
}

/// Others hear no vector that their handlers do not know, nor the one that has no EOI, nor what is valid here and not there.
fn for_others(low: u32) -> u32 {
    let vector = low & 0xff;
    let vector = if (0x20..0xff).contains(&vector) { vector } else { 0x2f };
    low & 0x000c_8f00 | 1 << 14 | vector
}

fn to_others(random: &mut Random, subject: &Subject, low: u32) -> Operation {
    let low = for_others(low);
    match random.below(4) {
        0 => Operation::Command { destination: random.bits() as u32, low: low | 2 << 18 },
        1 => Operation::Command { destination: random.bits() as u32, low: low | 3 << 18 },
        2 => Operation::Command { destination: subject.wide(random.below(64) as u32), low },
        _ => Operation::Command { destination: subject.wide(u32::MAX), low },
    }
}

/// NMIs, and what sends nothing: start-up IPIs nobody waits for, the INIT de-assert, and modes and combinations that the
/// manual calls reserved or invalid. SMI and INIT are for nobody here.
fn strange(random: &mut Random, subject: &Subject, low: u32) -> Operation {
    let own = subject.own_destination();
    // Whatever an APIC makes of it may become an interrupt on this CPU.
    let low = if low & 0xff < 0x20 { low | 0x20 } else { low };
    let with = |mode: u32| low & !0x700 | mode << 8;
    let (destination, low) = match random.below(8) {
        0..3 => (own, with(4)),
        3 => (own, with(4) | 1 << 18),
        4 => (own, with(6)),
        // Whether silicon takes this for an INIT is not for us to try.
        5 if subject.machine != Machine::Metal => (own, with(5) & !(1 << 14) | 1 << 15),
        6 => (own, with(random.pick(&[3, 7]))),
        _ => (own, with(1) | random.pick(&[0, 1 << 18])),
    };
    Operation::Command { destination, low }
}

/// An LVT entry with a delivery mode it may have. Unmasked only where its event raises a fixed interrupt, if any.
fn entry(random: &mut Random, subject: &Subject) -> Operation {
    let offset = random.pick(&[CMCI, 0x330, 0x340, LVT_LINT0, 0x360, LVT_ERROR, LVT_ERROR]);
    let offset = if offset == CMCI && !subject.profile.cmci() { LVT_ERROR } else { offset };
    let mut value = u32::from(quiet_vector(random));
    let mode = match offset {
        LVT_ERROR => 0,
        LVT_LINT0 | 0x360 => random.pick(&[0, 0, 2, 4, 5, 7]),
        _ => random.pick(&[0, 0, 2, 4]),
    };
    value |= mode << 8;
    value |= if mode != 0 || random.one_in(2) { MASKED } else { 0 };
    if matches!(offset, LVT_LINT0 | 0x360) {
        // Polarity as wired, the pins do nothing; level only where it exists.
        let level = offset == LVT_LINT0 && mode == 0 && knows_levels(subject);
        value |= u32::from(level && random.one_in(3)) << 15;
    }
    if subject.mode != Mode::X2Apic && random.one_in(4) {
        value |= random.bits() as u32 & 0xfff8_5800;
        if offset == LVT_ERROR {
            value |= random.bits() as u32 & 0x700;
        }
    }
    Operation::Write { offset, value: u64::from(value) }
}

/// QEMU takes the vector of a level-triggered LINT0 out of IRR whenever the 8259 has nothing to say, which it says when it
/// pleases. Nothing can be compared there.
fn knows_levels(subject: &Subject) -> bool {
    subject.machine != Machine::Qemu
}

/// The timer's registers, with counts that do not end.
fn timer(random: &mut Random, subject: &Subject) -> Operation {
    let modes: &[u32] =
        if subject.profile.tsc_deadline() { &[0, PERIODIC, TSC_DEADLINE] } else { &[0, PERIODIC] };
    match random.below(8) {
        0..3 => {
            let value = MASKED | random.pick(modes) | u32::from(quiet_vector(random));
            Operation::Write { offset: LVT_TIMER, value: u64::from(value) }
        }
        3 | 4 => Operation::Write { offset: INITIAL_COUNT, value: random.pick(&LONG) },
        5 => Operation::Write { offset: INITIAL_COUNT, value: 0 },
        6 if subject.profile.tsc_deadline() => {
            let later = NEVER | random.below(1 << 40);
            Operation::Deadline(random.pick(&[0, NEVER, later]))
        }
        _ => Operation::Write { offset: DIVIDE, value: u64::from(random.pick(&CODES)) },
    }
}

fn counting(random: &mut Random) -> u32 {
    let mode = if random.one_in(2) { PERIODIC } else { 0 };
    let masked = if random.one_in(4) { MASKED } else { 0 };
    mode | masked | u32::from(quiet_vector(random))
}

/// One that is reserved in IA32_APIC_BASE whatever the mode, or makes the mode invalid.
fn reserved_base_bit(random: &mut Random, subject: &Subject) -> u64 {
    let first = u64::from(subject.profile.physical_address_bits());
    match random.below(4) {
        0 => 1 << random.below(8),
        1 => 1 << 9,
        // In x2APIC mode to xAPIC mode; in xAPIC mode to neither EN nor its contrary.
        2 if subject.mode == Mode::X2Apic || !subject.profile.x2apic() => 1 << 10,
        2 => 1 << 10 | 1 << 11,
        _ => 1 << (first + random.below(64 - first)),
    }
}

fn slot(random: &mut Random) -> u16 {
    let slots = if random.one_in(4) { 0x100 } else { 0x40 };
    (random.below(slots) as u16) << 4
}

/// Writes that have no business there: read-only and reserved registers, walking bits.
fn stray(random: &mut Random, subject: &Subject) -> Operation {
    let x2apic = subject.mode == Mode::X2Apic;
    let offset = slot(random);
    let high = x2apic && random.one_in(8);
    let walking = 1 << random.below(if high { 64 } else { 32 });
    let value = match offset {
        // What these do is for operations that choose their values.
        ICR => return Operation::Read { offset },
        // Sent by a write to the slot below in some machines: the address space of MSIs.
        0x000 | 0x010 if !x2apic => return Operation::Read { offset },
        // With another ID than it was made with, QEMU's APIC does not even find itself.
        0x020 if subject.profile.xapic_id_writable() => return Operation::Read { offset },
        DFR if !x2apic => dfr(random),
        SVR => 0x1ff ^ walking & !0xff,
        LVT_TIMER | LVT_ERROR | CMCI | 0x330..=0x360 => {
            // Masked, and the bits left alone of which nobody says what a write of them does.
            let bits = if x2apic { walking & !0x5000 } else { walking };
            let bits = if knows_levels(subject) { bits } else { bits & !0x8000 };
            u64::from(MASKED) | 0x20 | bits & if high { u64::MAX } else { 0xffff_f8df }
        }
        INITIAL_COUNT => random.pick(&LONG) | if high { walking } else { 0 },
        SELF_IPI => 0x20 | walking,
        // The register of AMD's extended space that ends interrupts, and those beside it.
        0x400..=0x530 if subject.profile.extended_space() => return Operation::Read { offset },
        _ => walking,
    };
    Operation::Write { offset, value }
}
