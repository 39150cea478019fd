//! Interrupt messages: what travels between APICs, I/O APICs and devices.

use crate::base::Mode;
use crate::vector::Trigger;

/// A message and where it goes, in one word: it travels in a register.
///
/// The bits are those of an x2APIC-mode ICR (SDM Vol. 3A Figure 10-28) as far as they say something
/// about this message, the others are zero: vector or start page 7:0, delivery mode 10:8, logical 11,
/// trigger mode 15, shorthand 19:18, destination 63:32. Bit 20 says that the destination is a wide one.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Message(u64);

const VECTOR: u64 = 0xFF;
const DELIVERY_MODE: u64 = 7 << 8;
const LOWEST_PRIORITY: u64 = 1 << 8;
const LOGICAL: u64 = 1 << 11;
const TRIGGER_MODE: u64 = 1 << 15;
const SHORTHAND: u64 = 3 << 18;
const SELF: u64 = 1 << 18;
const ALL: u64 = 2 << 18;
const ALL_BUT_SELF: u64 = 3 << 18;
const WIDE: u64 = 1 << 20;

impl Message {
    /// The message that delivers `delivery` to `destination`.
    #[inline]
    #[must_use]
    pub const fn new(delivery: Delivery, destination: Destination) -> Self {
        Self(delivery.word() | destination.word())
    }

    /// What is delivered.
    #[inline]
    #[must_use]
    pub const fn delivery(self) -> Delivery {
        let vector = self.vector();
        let trigger = self.trigger();
        match (self.0 & DELIVERY_MODE) >> 8 {
            0 => Delivery::Fixed { vector, trigger },
            1 => Delivery::LowestPriority { vector, trigger },
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup { page: vector },
            _ => Delivery::ExtInt,
        }
    }

    /// To whom.
    #[inline]
    #[must_use]
    pub const fn destination(self) -> Destination {
        match self.0 & SHORTHAND {
            SELF => Destination::SelfOnly,
            ALL => Destination::All,
            ALL_BUT_SELF => Destination::AllButSelf,
            _ => {
                let id = self.id();
                let wide = self.0 & WIDE != 0;
                let address = if wide { Address::Wide(id) } else { Address::Narrow(id as u8) };
                if self.0 & LOGICAL != 0 {
                    Destination::Logical(address)
                } else {
                    Destination::Physical(address)
                }
            }
        }
    }

    /// A fixed, edge-triggered interrupt, as bits 31:0 of an ICR in `mode` command it, whose other
    /// half is `high`.
    #[inline]
    pub(crate) const fn fixed_edge(low: u32, high: u32, mode: Mode) -> Self {
        let low = low as u64;
        let vector = low & VECTOR;
        if low & SHORTHAND != 0 {
            return Self(vector | low & SHORTHAND);
        }
        let address = match mode {
            Mode::X2Apic => Address::Wide(high),
            _ => Address::Narrow((high >> 24) as u8),
        };
        Self(vector | low & LOGICAL | address.word())
    }

    /// A message that delivers nothing in particular.
    #[inline]
    pub(crate) const fn to(destination: Destination) -> Self {
        Self(destination.word())
    }

    /// Bits 63:32.
    #[inline]
    pub(crate) const fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// To every APIC.
    #[inline]
    pub(crate) const fn is_broadcast(self) -> bool {
        let broadcast = if self.0 & WIDE != 0 { u32::MAX } else { 0xFF };
        self.0 & SHORTHAND == ALL || self.0 & SHORTHAND == 0 && self.id() == broadcast
    }

    /// A fixed interrupt to a physical address.
    #[inline]
    pub(crate) const fn is_fixed_to_physical(self) -> bool {
        self.0 & (DELIVERY_MODE | SHORTHAND | LOGICAL) == 0
    }

    /// A fixed interrupt to every APIC, or to all but the sender.
    #[inline]
    pub(crate) const fn is_fixed_to_all(self) -> bool {
        self.is_fixed() && (self.is_broadcast() || self.is_to_others())
    }

    /// A fixed interrupt.
    #[inline]
    pub(crate) const fn is_fixed(self) -> bool {
        self.0 & DELIVERY_MODE == 0
    }

    /// To a logical address.
    #[inline]
    pub(crate) const fn is_logical(self) -> bool {
        self.0 & LOGICAL != 0
    }

    /// To all but the sender.
    #[inline]
    pub(crate) const fn is_to_others(self) -> bool {
        self.0 & SHORTHAND == ALL_BUT_SELF
    }

    /// The vector, of those messages that carry one.
    #[inline]
    pub(crate) const fn vector(self) -> u8 {
        (self.0 & VECTOR) as u8
    }

    /// The trigger mode, of those messages that carry a vector.
    #[inline]
    pub(crate) const fn trigger(self) -> Trigger {
        if self.0 & TRIGGER_MODE != 0 { Trigger::Level } else { Trigger::Edge }
    }

    /// The sender alone. Only fixed interrupts go there (SDM Vol. 3A Table 10-3).
    #[inline]
    #[must_use]
    pub const fn is_to_self(self) -> bool {
        self.0 & SHORTHAND == SELF
    }

    /// Fixed or lowest priority.
    #[inline]
    pub(crate) const fn carries_vector(self) -> bool {
        self.0 & DELIVERY_MODE <= LOWEST_PRIORITY
    }

    /// Lowest priority.
    #[inline]
    pub(crate) const fn is_to_lowest_priority(self) -> bool {
        self.0 & DELIVERY_MODE == LOWEST_PRIORITY
    }
}

impl core::fmt::Debug for Message {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Message")
            .field("delivery", &self.delivery())
            .field("destination", &self.destination())
            .finish()
    }
}

/// What a message delivers (SDM Vol. 3A 10.6.1 and 10.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A vector, to every destination. Vectors below 16 set ESR bit 6 at the receiver.
    Fixed {
        /// The vector.
        vector: u8,
        /// Edge or level.
        trigger: Trigger,
    },
    /// A vector, to one of the destinations that accept it.
    LowestPriority {
        /// The vector.
        vector: u8,
        /// Edge or level.
        trigger: Trigger,
    },
    /// System-management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    Startup {
        /// The start page: execution begins at `page << 12` in real mode.
        page: u8,
    },
    /// External interrupt: the vector comes from the 8259.
    ExtInt,
}

impl Delivery {
    const fn word(self) -> u64 {
        let (mode, low, level) = match self {
            Self::Fixed { vector, trigger } => (0, vector, matches!(trigger, Trigger::Level)),
            Self::LowestPriority { vector, trigger } => {
                (1, vector, matches!(trigger, Trigger::Level))
            }
            Self::Smi => (2, 0, false),
            Self::Nmi => (4, 0, false),
            Self::Init => (5, 0, false),
            Self::Startup { page } => (6, page, false),
            Self::ExtInt => (7, 0, false),
        };
        mode << 8 | low as u64 | if level { TRIGGER_MODE } else { 0 }
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The sender (shorthand 01).
    SelfOnly,
    /// Every APIC (shorthand 10).
    All,
    /// Every APIC but the sender (shorthand 11).
    AllButSelf,
    /// The APIC with this ID.
    Physical(Address),
    /// The APICs whose LDR matches.
    Logical(Address),
}

impl Destination {
    const fn word(self) -> u64 {
        match self {
            Self::SelfOnly => SELF,
            Self::All => ALL,
            Self::AllButSelf => ALL_BUT_SELF,
            Self::Physical(address) => address.word(),
            Self::Logical(address) => address.word() | LOGICAL,
        }
    }
}

/// A destination field together with the width of the message that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// From an xAPIC-mode ICR, an I/O APIC or an MSI without remapping: FF is broadcast.
    Narrow(u8),
    /// From an x2APIC-mode ICR or a remapped interrupt: FFFFFFFF is broadcast.
    Wide(u32),
}

impl Address {
    /// The destination as 32 bits.
    #[inline]
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Narrow(id) => id as u32,
            Self::Wide(id) => id,
        }
    }

    /// Whether the address means every APIC.
    #[inline]
    #[must_use]
    pub const fn broadcast(self) -> bool {
        matches!(self, Self::Narrow(0xFF) | Self::Wide(0xFFFF_FFFF))
    }

    const fn word(self) -> u64 {
        match self {
            Self::Narrow(id) => (id as u64) << 32,
            Self::Wide(id) => (id as u64) << 32 | WIDE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_it_was_made_of() {
        let vector = 0xA5;
        let deliveries = [Trigger::Edge, Trigger::Level].into_iter().flat_map(|trigger| {
            [Delivery::Fixed { vector, trigger }, Delivery::LowestPriority { vector, trigger }]
        });
        let page = 0x5A;
        let others = [
            Delivery::Smi,
            Delivery::Nmi,
            Delivery::Init,
            Delivery::Startup { page },
            Delivery::ExtInt,
        ];
        for delivery in deliveries.chain(others) {
            let narrow = [0, 1, 0x80, 0xFF].map(Address::Narrow);
            let wide = [0, 1, 0xFF, 0x100, 0xFFFF_FFFF].map(Address::Wide);
            let addresses = || narrow.into_iter().chain(wide);
            let destinations = [Destination::SelfOnly, Destination::All, Destination::AllButSelf]
                .into_iter()
                .chain(addresses().map(Destination::Physical))
                .chain(addresses().map(Destination::Logical));
            for destination in destinations {
                let message = Message::new(delivery, destination);
                assert_eq!((message.delivery(), message.destination()), (delivery, destination));
            }
        }
    }
}
