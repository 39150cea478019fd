//! Interrupt messages: what travels between APICs, I/O APICs and devices.

use crate::vector::Trigger;

/// A message and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is delivered.
    pub delivery: Delivery,
    /// To whom.
    pub destination: Destination,
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
}
