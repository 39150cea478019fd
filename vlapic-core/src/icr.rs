//! Interrupt command register.

use bit_field::BitField;

use crate::base::Mode;
use crate::inbox::Inbox;
use crate::message::{Address, Delivery, Destination, Message};
use crate::profile::{Profile, Vendor};
use crate::register::Register;
use crate::slot::Slot;
use crate::vector::{Trigger, Vector};

/// ICR as one 64-bit word: low register in bits 31:0, high register or x2APIC destination in bits
/// 63:32 (SDM Vol. 3A Figures 10-12 and 10-28; APM Vol. 2 Figures 16-18 and 16-34).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Icr(u64);

/// What writing an ICR sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcrCommand {
    /// A message.
    Send(Message),
    /// Nothing, and ESR bit 5: fixed or lowest priority with a vector below 16.
    IllegalVector,
    /// Nothing: a reserved delivery mode or a combination the manual calls invalid.
    Invalid,
}

impl Icr {
    /// The word `bits`, unchecked.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word made of both halves.
    #[inline]
    #[must_use]
    pub const fn from_halves(low: u32, high: u32) -> Self {
        Self((high as u64) << 32 | low as u64)
    }

    /// The word.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bits 31:0.
    #[inline]
    #[must_use]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// Bits 63:32.
    #[inline]
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Bits 7:0.
    #[inline]
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Bits 10:8, undecoded.
    #[inline]
    #[must_use]
    pub const fn delivery_mode(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Bit 11: the destination is logical.
    #[inline]
    #[must_use]
    pub fn logical(self) -> bool {
        self.0.get_bit(11)
    }

    /// Bit 14: assert.
    #[inline]
    #[must_use]
    pub fn assert(self) -> bool {
        self.0.get_bit(14)
    }

    /// Bit 15.
    #[inline]
    #[must_use]
    pub fn trigger(self) -> Trigger {
        if self.0.get_bit(15) { Trigger::Level } else { Trigger::Edge }
    }

    /// Bits 19:18, undecoded: 0 none, 1 self, 2 all including self, 3 all excluding self.
    #[inline]
    #[must_use]
    pub const fn shorthand(self) -> u8 {
        (self.0 >> 18) as u8 & 3
    }

    /// The destination that the fields name for a sender in `mode`.
    #[inline]
    #[must_use]
    pub fn destination(self, mode: Mode) -> Destination {
        match self.shorthand() {
            0 => {
                let address = match mode {
                    Mode::X2Apic => Address::Wide(self.high()),
                    _ => Address::Narrow((self.high() >> 24) as u8),
                };
                if self.logical() {
                    Destination::Logical(address)
                } else {
                    Destination::Physical(address)
                }
            }
            1 => Destination::SelfOnly,
            2 => Destination::All,
            _ => Destination::AllButSelf,
        }
    }

    /// The fixed, edge-triggered interrupt that the fields name for a sender in `mode`, whatever
    /// delivery mode and trigger mode they say.
    #[inline]
    #[must_use]
    pub const fn fixed_edge(self, mode: Mode) -> Message {
        Message::fixed_edge(self.low(), self.high(), mode)
    }

    /// What a write of this word sends from an APIC of `profile` in `mode`.
    ///
    /// Intel, Pentium 4 and later (SDM Vol. 3A Table 10-3): bits 14 and 15 have no effect, all is
    /// sent as assert and edge, except that the INIT de-assert is dropped. AMD (APM Vol. 2 Table
    /// 16-4): level needs assert. Where a manual only says "invalid", nothing is sent: types
    /// other than fixed with shorthand self or all-including-self; reserved delivery modes, which
    /// in x2APIC mode include lowest priority and on Intel are 3 and 7. Remote read (AMD, mode 3)
    /// is not implemented and is treated as reserved.
    #[inline]
    #[must_use]
    pub fn command(self, mode: Mode, profile: &Profile) -> IcrCommand {
        if self.delivery_mode() != 0 || self.trigger() == Trigger::Level {
            return self.rare_command(mode, profile);
        }
        if Vector::new(self.vector()).is_none() {
            return IcrCommand::IllegalVector;
        }
        IcrCommand::Send(self.fixed_edge(mode))
    }

    /// Any but a fixed, edge-triggered interrupt.
    #[inline(never)]
    fn rare_command(self, mode: Mode, profile: &Profile) -> IcrCommand {
        let amd = profile.vendor() == Vendor::Amd;
        let xapic = mode != Mode::X2Apic;
        let level = self.trigger() == Trigger::Level;
        if level
            && !self.assert()
            && (amd && self.delivery_mode() != 6 || self.delivery_mode() == 5)
        {
            return IcrCommand::Invalid;
        }
        let trigger = if amd { self.trigger() } else { Trigger::Edge };
        let vector = self.vector();
        let delivery = match self.delivery_mode() {
            0 => Delivery::Fixed { vector, trigger },
            1 if xapic => Delivery::LowestPriority { vector, trigger },
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup { page: vector },
            7 if xapic && amd => Delivery::ExtInt,
            _ => return IcrCommand::Invalid,
        };
        let destination = self.destination(mode);
        let to_self = matches!(destination, Destination::SelfOnly | Destination::All);
        match delivery {
            Delivery::Fixed { .. } => {}
            _ if to_self => return IcrCommand::Invalid,
            _ => {}
        }
        let carries_vector =
            matches!(delivery, Delivery::Fixed { .. } | Delivery::LowestPriority { .. });
        if carries_vector && Vector::new(vector).is_none() {
            return IcrCommand::IllegalVector;
        }
        IcrCommand::Send(Message::new(delivery, destination))
    }
}

impl<I: Inbox> Slot<'_, I> {
    /// The whole ICR, from where the vendor keeps it: in x2APIC mode Intel has one 64-bit word at
    /// 300, AMD keeps the halves at 300 and 310 (SDM Vol. 3C 29.5; APM Vol. 2 15.29.10).
    #[inline]
    #[must_use]
    pub fn icr(&self) -> Icr {
        let page = self.page();
        Icr::from_halves(page.read(Register::IcrLow), page.load(self.icr_high_offset(self.mode())))
    }

    /// Stores the whole ICR where the vendor keeps it in `mode`.
    #[inline]
    pub(crate) fn store_icr(&self, icr: Icr, mode: Mode) {
        self.page().store(self.icr_high_offset(mode), icr.high());
        self.page().write(Register::IcrLow, icr.low());
    }

    #[inline]
    pub(crate) fn icr_high_offset(&self, mode: Mode) -> u16 {
        match (self.profile().vendor(), mode) {
            (Vendor::Intel, Mode::X2Apic) => 0x304,
            _ => Register::IcrHigh.offset(),
        }
    }
}

#[cfg(test)]
mod tests;
