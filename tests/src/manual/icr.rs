//! What a write of ICR sends: SDM Vol. 3A 10.6.1, Table 10-3 and Figure 10-28; APM Vol. 2 16.5,
//! Table 16-4 and Figure 16-34.

use vlapic_core::{Address, Delivery, Destination, Message, Mode, Trigger, Vendor};

/// What all words do that agree in bits 31:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// WRMSR raises #GP and changes nothing.
    Fault,
    /// Nothing is sent.
    Nothing,
    /// An interrupt with the word's vector; below 16, nothing but ESR bit 5.
    Vector {
        /// Lowest priority instead of fixed.
        lowest: bool,
        /// Level-triggered.
        level: bool,
        /// To whom.
        to: To,
    },
    /// A message that carries no vector, or means something else by it.
    Event(Event, To),
}

/// A delivery that is not a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Delivery mode 2.
    Smi,
    /// Delivery mode 4.
    Nmi,
    /// Delivery mode 5.
    Init,
    /// Delivery mode 6.
    Startup,
    /// Delivery mode 7.
    ExtInt,
}

/// Bits 19:18, and bit 11 where they are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The destination field is an APIC ID.
    Physical,
    /// The destination field is matched with LDR.
    Logical,
    /// Shorthand 1.
    Itself,
    /// Shorthand 2.
    All,
    /// Shorthand 3.
    Others,
}

/// A row of the tables: what a delivery mode sends, with which shorthands, and what bits 15
/// (level-triggered) and 14 (assert) do.
struct Row {
    delivery_mode: u32,
    sends: Sends,
    shorthands: [bool; 4],
    level: Level,
}

#[derive(Clone, Copy)]
enum Sends {
    Fixed,
    LowestPriority,
    Event(Event),
}

#[derive(Clone, Copy)]
enum Level {
    /// Sent as an edge whatever they say.
    NoEffect,
    /// As above, but level without assert is the INIT de-assert, which is not sent.
    DeAssertIsNothing,
    /// Level needs assert, and is sent as such.
    NeedsAssert,
}

const ANY: [bool; 4] = [true; 4];
/// The combinations that Table 10-3 and Table 16-4 leave for everything that is not fixed.
const NONE_OR_OTHERS: [bool; 4] = [true, false, false, true];

const fn row(delivery_mode: u32, sends: Sends, shorthands: [bool; 4], level: Level) -> Row {
    Row { delivery_mode, sends, shorthands, level }
}

/// SDM Vol. 3A Table 10-3 and 10.6.1 (Pentium 4 and later). Modes 3 and 7 are reserved.
const INTEL: [Row; 6] = [
    row(0, Sends::Fixed, ANY, Level::NoEffect),
    row(1, Sends::LowestPriority, NONE_OR_OTHERS, Level::NoEffect),
    row(2, Sends::Event(Event::Smi), NONE_OR_OTHERS, Level::NoEffect),
    row(4, Sends::Event(Event::Nmi), NONE_OR_OTHERS, Level::NoEffect),
    row(5, Sends::Event(Event::Init), NONE_OR_OTHERS, Level::DeAssertIsNothing),
    row(6, Sends::Event(Event::Startup), NONE_OR_OTHERS, Level::NoEffect),
];

/// APM Vol. 2 Table 16-4. ExtINT does not stand there; it is held to be like NMI. Remote read, mode
/// 3, asks for a register that no APIC answers with any more: nothing is sent.
const AMD: [Row; 7] = [
    row(0, Sends::Fixed, ANY, Level::NeedsAssert),
    row(1, Sends::LowestPriority, NONE_OR_OTHERS, Level::NeedsAssert),
    row(2, Sends::Event(Event::Smi), NONE_OR_OTHERS, Level::NeedsAssert),
    row(4, Sends::Event(Event::Nmi), NONE_OR_OTHERS, Level::NeedsAssert),
    row(5, Sends::Event(Event::Init), NONE_OR_OTHERS, Level::NeedsAssert),
    row(6, Sends::Event(Event::Startup), NONE_OR_OTHERS, Level::NoEffect),
    row(7, Sends::Event(Event::ExtInt), NONE_OR_OTHERS, Level::NeedsAssert),
];

/// The delivery modes that x2APIC mode has.
const IN_X2APIC: [u32; 5] = [0, 2, 4, 5, 6];

/// Bits that must be zero in x2APIC mode. Bit 12 was delivery status: Intel's silicon ignores it.
const fn must_be_zero(vendor: Vendor) -> u32 {
    match vendor {
        Vendor::Intel => 0xFFF0_0000 | 0x0003_0000 | 1 << 13,
        Vendor::Amd => 0xFFF0_0000 | 0x0003_0000 | 1 << 13 | 1 << 12,
    }
}

/// The bits that ICR keeps: vector, delivery and destination mode, level, trigger, shorthand.
pub const KEPT: u32 = 0x0000_0FFF | 0x0000_C000 | 0x000C_0000;

/// What the words do whose bits 31:8 are those of `low`.
#[must_use]
pub fn verdict(low: u32, mode: Mode, vendor: Vendor) -> Verdict {
    let x2apic = mode == Mode::X2Apic;
    if x2apic && low & must_be_zero(vendor) != 0 {
        return Verdict::Fault;
    }
    let rows: &[Row] = match vendor {
        Vendor::Intel => &INTEL,
        Vendor::Amd => &AMD,
    };
    let delivery_mode = low >> 8 & 7;
    let shorthand = low >> 18 & 3;
    let (level, assert) = (low >> 15 & 1 == 1, low >> 14 & 1 == 1);
    let reserved = x2apic && !IN_X2APIC.contains(&delivery_mode);
    let row = rows.iter().find(|row| row.delivery_mode == delivery_mode);
    let Some(row) = row.filter(|row| !reserved && row.shorthands[shorthand as usize]) else {
        return Verdict::Nothing;
    };
    let dropped = matches!(row.level, Level::DeAssertIsNothing | Level::NeedsAssert);
    if level && !assert && dropped {
        return Verdict::Nothing;
    }
    let level = level && matches!(row.level, Level::NeedsAssert);
    let to = match (shorthand, low >> 11 & 1) {
        (0, 0) => To::Physical,
        (0, _) => To::Logical,
        (1, _) => To::Itself,
        (2, _) => To::All,
        _ => To::Others,
    };
    match row.sends {
        Sends::Fixed => Verdict::Vector { lowest: false, level, to },
        Sends::LowestPriority => Verdict::Vector { lowest: true, level, to },
        Sends::Event(event) => Verdict::Event(event, to),
    }
}

/// The message of a vector.
#[must_use]
#[inline]
pub fn vector_message(vector: u8, lowest: bool, level: bool, to: To, address: Address) -> Message {
    let trigger = if level { Trigger::Level } else { Trigger::Edge };
    let delivery = if lowest {
        Delivery::LowestPriority { vector, trigger }
    } else {
        Delivery::Fixed { vector, trigger }
    };
    Message::new(delivery, destination(to, address))
}

/// The message of an event; `low` is the vector field.
#[must_use]
#[inline]
pub fn event_message(event: Event, low: u8, to: To, address: Address) -> Message {
    let delivery = match event {
        Event::Smi => Delivery::Smi,
        Event::Nmi => Delivery::Nmi,
        Event::Init => Delivery::Init,
        Event::Startup => Delivery::Startup { page: low },
        Event::ExtInt => Delivery::ExtInt,
    };
    Message::new(delivery, destination(to, address))
}

#[inline]
const fn destination(to: To, address: Address) -> Destination {
    match to {
        To::Physical => Destination::Physical(address),
        To::Logical => Destination::Logical(address),
        To::Itself => Destination::SelfOnly,
        To::All => Destination::All,
        To::Others => Destination::AllButSelf,
    }
}
