//! Message-signalled interrupts: address and data to a message (SDM Vol. 3A 10.11).

use bit_field::BitField;

use crate::message::{Address, Delivery, Destination, Message};
use crate::vector::Trigger;

/// An MSI's address as a word (SDM Vol. 3A 10.11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct MsiAddress(u64);

/// An MSI's data as a word (SDM Vol. 3A 10.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct MsiData(u32);

/// How wide an MSI's destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MsiDestination {
    /// 8 bits, address bits 19:12, as the manuals have it.
    #[default]
    Narrow,
    /// 15 bits: bits 14:8 stand in address bits 11:5. A convention between hypervisors and guests
    /// without interrupt remapping; a guest uses it only if its hypervisor says so.
    Extended,
}

/// Why an MSI is no interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MsiError {
    /// The address is outside FEE00000 to FEEFFFFF: an ordinary write.
    NotAnInterrupt,
    /// Delivery mode 3 or 6.
    ReservedDelivery(u8),
}

impl core::fmt::Display for MsiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAnInterrupt => f.write_str("the address is not that of an interrupt"),
            Self::ReservedDelivery(mode) => write!(f, "delivery mode {mode} is reserved"),
        }
    }
}

impl core::error::Error for MsiError {}

impl MsiAddress {
    /// The word `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bits 63:20 are those of the interrupt window, FEE.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.0 >> 20 == 0xFEE
    }

    /// Bits 19:12.
    #[must_use]
    pub const fn destination(self) -> u8 {
        (self.0 >> 12) as u8
    }

    /// Bits 19:12, below bits 11:5.
    #[must_use]
    pub fn extended_destination(self) -> u16 {
        u16::from(self.destination()) | (self.0.get_bits(5..12) as u16) << 8
    }

    /// Bit 3, RH: deliver to one of the destinations only.
    #[must_use]
    pub fn redirection_hint(self) -> bool {
        self.0.get_bit(3)
    }

    /// Bit 2, DM: the destination is logical.
    #[must_use]
    pub fn logical(self) -> bool {
        self.0.get_bit(2)
    }
}

impl MsiData {
    /// The word `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The word.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Bits 7:0.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Bits 10:8, undecoded.
    #[must_use]
    pub const fn delivery_mode(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Bit 14: assert. Means something for level-triggered messages only.
    #[must_use]
    pub fn assert(self) -> bool {
        self.0.get_bit(14)
    }

    /// Bit 15.
    #[must_use]
    pub fn trigger(self) -> Trigger {
        if self.0.get_bit(15) { Trigger::Level } else { Trigger::Edge }
    }
}

impl Message {
    /// The message of an MSI; `None` for the de-assertion of a level, which interrupts nobody.
    ///
    /// Only fixed and lowest-priority interrupts have levels: SMI, NMI, INIT and ExtINT are edges
    /// whatever the trigger mode says (SDM Vol. 3A 10.11.2).
    ///
    /// DM counts whatever RH says: the SDM has it ignored with RH clear, real systems do not. RH
    /// turns a fixed interrupt into one for a single destination, which is lowest priority.
    ///
    /// # Errors
    /// [`MsiError`] if address or data are not those of an interrupt.
    pub fn from_msi(
        address: MsiAddress,
        data: MsiData,
        width: MsiDestination,
    ) -> Result<Option<Self>, MsiError> {
        if !address.is_interrupt() {
            return Err(MsiError::NotAnInterrupt);
        }
        let (vector, trigger) = (data.vector(), data.trigger());
        let delivery = match data.delivery_mode() {
            0 if address.redirection_hint() => Delivery::LowestPriority { vector, trigger },
            0 => Delivery::Fixed { vector, trigger },
            1 => Delivery::LowestPriority { vector, trigger },
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            7 => Delivery::ExtInt,
            reserved => return Err(MsiError::ReservedDelivery(reserved)),
        };
        let has_level =
            matches!(delivery, Delivery::Fixed { .. } | Delivery::LowestPriority { .. });
        if has_level && trigger == Trigger::Level && !data.assert() {
            return Ok(None);
        }
        let target = match width {
            MsiDestination::Extended if address.extended_destination() > 0xFF => {
                Address::Wide(u32::from(address.extended_destination()))
            }
            _ => Address::Narrow(address.destination()),
        };
        let destination = if address.logical() {
            Destination::Logical(target)
        } else {
            Destination::Physical(target)
        };
        Ok(Some(Self::new(delivery, destination)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(address: u64, data: u32) -> Result<Option<Message>, MsiError> {
        Message::from_msi(
            MsiAddress::from_bits(address),
            MsiData::from_bits(data),
            MsiDestination::Narrow,
        )
    }

    #[test]
    fn only_the_interrupt_window_counts() {
        for address in [0, 0xFED0_0000, 0xFEF0_0000, 0x1_FEE0_0000, u64::MAX, 0xFEDF_FFFF] {
            assert_eq!(decode(address, 0x41), Err(MsiError::NotAnInterrupt), "{address:#x}");
        }
        assert!(decode(0xFEE0_0000, 0x41).is_ok());
        assert!(decode(0xFEEF_FFFF, 0x41).is_ok());
    }

    #[test]
    fn delivery_modes() {
        let (vector, trigger) = (0x41, Trigger::Edge);
        let table = [
            Ok(Delivery::Fixed { vector, trigger }),
            Ok(Delivery::LowestPriority { vector, trigger }),
            Ok(Delivery::Smi),
            Err(MsiError::ReservedDelivery(3)),
            Ok(Delivery::Nmi),
            Ok(Delivery::Init),
            Err(MsiError::ReservedDelivery(6)),
            Ok(Delivery::ExtInt),
        ];
        for (mode, expected) in (0..).zip(table) {
            let decoded = decode(0xFEE0_5000, mode << 8 | 0x41);
            let destination = Destination::Physical(Address::Narrow(5));
            assert_eq!(decoded, expected.map(|delivery| Some(Message::new(delivery, destination))));
        }
    }

    #[test]
    fn a_level_has_two_edges_and_one_interrupts() {
        let trigger = Trigger::Level;
        let destination = Destination::Logical(Address::Narrow(0xFF));
        let asserted = Message::new(Delivery::Fixed { vector: 0x55, trigger }, destination);
        assert_eq!(decode(0xFEEF_F004, 0xC055), Ok(Some(asserted)));
        assert_eq!(decode(0xFEEF_F004, 0x8055), Ok(None));
        // NMI and the like are edges always.
        for mode in [2u32, 4, 5, 7] {
            let message = |data: u32| decode(0xFEEF_F004, mode << 8 | data);
            assert!(matches!(message(0x8055), Ok(Some(_))), "mode {mode}");
            assert_eq!(message(0x8055), message(0x0055), "mode {mode}");
        }
        // For an edge the level bit says nothing.
        assert_eq!(decode(0xFEEF_F004, 0x4055), decode(0xFEEF_F004, 0x0055));
    }

    #[test]
    fn the_redirection_hint_means_one_destination() {
        let delivery = Delivery::LowestPriority { vector: 0x30, trigger: Trigger::Edge };
        let destination = Destination::Logical(Address::Narrow(3));
        assert_eq!(decode(0xFEE0_300C, 0x30), Ok(Some(Message::new(delivery, destination))));
        let nmi = Message::new(Delivery::Nmi, destination);
        assert_eq!(decode(0xFEE0_300C, 0x400), Ok(Some(nmi)), "of fixed interrupts only");
    }

    #[test]
    fn extended_destinations_are_an_option() {
        let address = MsiAddress::from_bits(0xFEE0_0000 | 0x34 << 12 | 0x12 << 5);
        assert_eq!(address.extended_destination(), 0x1234);
        let target = |width| {
            Message::from_msi(address, MsiData::from_bits(0x41), width)
                .unwrap()
                .map(|message| message.destination())
        };
        let wide = Destination::Physical(Address::Wide(0x1234));
        let narrow = Destination::Physical(Address::Narrow(0x34));
        assert_eq!(target(MsiDestination::Extended), Some(wide));
        assert_eq!(target(MsiDestination::Narrow), Some(narrow));
        let broadcast = Message::from_msi(
            MsiAddress::from_bits(0xFEEF_F000),
            MsiData::from_bits(0x41),
            MsiDestination::Extended,
        );
        let destination = broadcast.unwrap().map(|message| message.destination());
        assert_eq!(destination, Some(Destination::Physical(Address::Narrow(0xFF))));
    }
}
