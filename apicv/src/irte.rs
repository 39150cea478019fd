//! Interrupt-remapping table entries of VT-d.

use core::error::Error;
use core::fmt;

use bit_field::BitField;
use vlapic_hal::PhysAddr;

/// An entry of the interrupt-remapping table: 128 bits (VT-d specification, "Interrupt Remapping
/// Table Entry").
///
/// Store it with one 16-byte store (CMPXCHG16B) or with P clear in between, then invalidate the
/// interrupt-entry cache.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Irte(u128);

impl Irte {
    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The entry as it stands in the table.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Bits 63:0 and 127:64, as two 64-bit words.
    #[must_use]
    pub const fn halves(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// Bit 0, P: with 0 every request through this entry is blocked.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0.get_bit(0)
    }

    /// Bit 15, IM: posted, not remapped.
    #[must_use]
    pub fn is_posted(self) -> bool {
        self.0.get_bit(15)
    }

    /// What the entry says, or `None` if it is not present.
    ///
    /// # Errors
    /// [`IrteError::Reserved`] with the reserved bits that are set, [`IrteError::Delivery`] and
    /// [`IrteError::Source`] for reserved encodings: the remapping hardware blocks the request.
    pub fn decode(self) -> Result<Option<Target>, IrteError> {
        if !self.is_present() {
            return Ok(None);
        }
        let reserved = self.0 & if self.is_posted() { POSTED_RESERVED } else { REMAPPED_RESERVED };
        if reserved != 0 {
            return Err(IrteError::Reserved(reserved));
        }
        Ok(Some(if self.is_posted() {
            Target::Posted(self.decode_posted()?)
        } else {
            Target::Remapped(self.decode_remapped()?)
        }))
    }

    fn decode_posted(self) -> Result<Posted, IrteError> {
        let low = self.0.get_bits(38..64) << 6;
        let high = self.0.get_bits(96..128) << 32;
        Ok(Posted {
            descriptor: PhysAddr::new((high | low) as u64),
            vector: self.vector(),
            urgent: self.0.get_bit(14),
            common: self.decode_common()?,
        })
    }

    fn decode_remapped(self) -> Result<Remapped, IrteError> {
        Ok(Remapped {
            destination: self.0.get_bits(32..64) as u32,
            vector: self.vector(),
            logical: self.0.get_bit(2),
            redirection_hint: self.0.get_bit(3),
            level: self.0.get_bit(4),
            delivery: RemappedDelivery::from_bits(self.0.get_bits(5..8) as u8)?,
            common: self.decode_common()?,
        })
    }

    fn vector(self) -> u8 {
        self.0.get_bits(16..24) as u8
    }

    fn decode_common(self) -> Result<Common, IrteError> {
        Ok(Common {
            fault_processing_disable: self.0.get_bit(1),
            available: self.0.get_bits(8..12) as u8,
            source: Source::from_bits(self.0.get_bits(64..96) as u32)?,
        })
    }
}

impl fmt::Debug for Irte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Irte({:#034x})", self.0)
    }
}

/// Bits 7:2, 13:12, 31:24, 37:32 and 95:84.
const POSTED_RESERVED: u128 = 0x0000_0000_fff0_0000_0000_003f_ff00_30fc;
/// Bits 14:12, 31:24 and 127:84.
const REMAPPED_RESERVED: u128 = 0xffff_ffff_fff0_0000_0000_0000_ff00_7000;

/// What a present entry does with an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// It is sent on to a physical CPU.
    Remapped(Remapped),
    /// It is posted to a vCPU.
    Posted(Posted),
}

/// Posted format (IM = 1): the hardware sets the vector in PIR and, unless ON is set, or SN is and the
/// entry is not urgent, sets ON and sends NV to NDST.
///
/// Trigger mode is lost, and with it the EOI of a level-triggered interrupt: not for I/O APIC pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// PDA: the posted-interrupt descriptor, 64-byte aligned.
    pub descriptor: PhysAddr,
    /// The virtual vector.
    pub vector: u8,
    /// URG: notify even while SN is set.
    pub urgent: bool,
    /// The fields that both formats have.
    pub common: Common,
}

impl Posted {
    /// The entry, present.
    ///
    /// # Errors
    /// [`IrteError::Misaligned`] if the descriptor is not aligned to 64 bytes.
    pub fn encode(&self) -> Result<Irte, IrteError> {
        if !self.descriptor.is_aligned(64) {
            return Err(IrteError::Misaligned(self.descriptor));
        }
        let address = u128::from(self.descriptor.as_u64());
        let mut bits = self.common.encode();
        bits.set_bit(14, self.urgent)
            .set_bit(15, true)
            .set_bits(16..24, self.vector.into())
            .set_bits(38..64, address.get_bits(6..32))
            .set_bits(96..128, address.get_bits(32..64));
        Ok(Irte(bits))
    }
}

/// Remapped format (IM = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remapped {
    /// Destination ID as it stands in bits 63:32: all 32 bits in x2APIC mode (EIME = 1), else the
    /// 8-bit ID in bits 15:8; see [`Remapped::xapic_destination`].
    pub destination: u32,
    /// The vector.
    pub vector: u8,
    /// DM: logical destination mode.
    pub logical: bool,
    /// RH: one of the CPUs that match.
    pub redirection_hint: bool,
    /// TM: level-triggered.
    pub level: bool,
    /// DLM: delivery mode.
    pub delivery: RemappedDelivery,
    /// The fields that both formats have.
    pub common: Common,
}

impl Remapped {
    /// The entry, present.
    #[must_use]
    pub fn encode(&self) -> Irte {
        let mut bits = self.common.encode();
        bits.set_bit(2, self.logical)
            .set_bit(3, self.redirection_hint)
            .set_bit(4, self.level)
            .set_bits(5..8, (self.delivery as u8).into())
            .set_bits(16..24, self.vector.into())
            .set_bits(32..64, self.destination.into());
        Irte(bits)
    }

    /// The destination field for the 8-bit ID `id`, while the remapping hardware is in xAPIC mode.
    #[must_use]
    pub const fn xapic_destination(id: u8) -> u32 {
        (id as u32) << 8
    }
}

/// The fields that both formats have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// FPD: requests blocked because of this entry are not reported as faults.
    pub fault_processing_disable: bool,
    /// Bits 11:8, for software; only the low four bits count.
    pub available: u8,
    /// Who may use the entry.
    pub source: Source,
}

impl Common {
    fn encode(&self) -> u128 {
        let mut bits = 0;
        bits.set_bit(0, true)
            .set_bit(1, self.fault_processing_disable)
            .set_bits(8..12, (self.available & 0xf).into())
            .set_bits(64..96, self.source.to_bits().into());
        bits
    }
}

/// Which requester IDs an entry accepts: SVT, SQ and SID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// SVT 0: any.
    #[default]
    Any,
    /// SVT 1: this requester ID, less the bits that SQ leaves out.
    Requester {
        /// Bus in 15:8, device and function in 7:0.
        id: u16,
        /// SQ: 0 compares all bits, 1 all but bit 2, 2 all but bits 2:1, 3 all but bits 2:0. Only
        /// the low two bits count.
        qualifier: u8,
    },
    /// SVT 2: any requester on these buses.
    Buses {
        /// The first.
        first: u8,
        /// The last.
        last: u8,
    },
}

impl Source {
    /// SID in 15:0, SQ in 17:16, SVT in 19:18.
    const fn to_bits(self) -> u32 {
        match self {
            Self::Any => 0,
            Self::Requester { id, qualifier } => 1 << 18 | (qualifier as u32 & 3) << 16 | id as u32,
            Self::Buses { first, last } => 2 << 18 | (first as u32) << 8 | last as u32,
        }
    }

    fn from_bits(bits: u32) -> Result<Self, IrteError> {
        let id = bits as u16;
        match bits.get_bits(18..20) {
            0 => Ok(Self::Any),
            1 => Ok(Self::Requester { id, qualifier: bits.get_bits(16..18) as u8 }),
            2 => Ok(Self::Buses { first: (id >> 8) as u8, last: id as u8 }),
            _ => Err(IrteError::Source),
        }
    }
}

/// DLM, how a remapped interrupt is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RemappedDelivery {
    /// To all CPUs that match.
    Fixed = 0,
    /// To the one of lowest priority.
    LowestPriority = 1,
    /// SMI.
    Smi = 2,
    /// NMI.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// As from an 8259.
    ExtInt = 7,
}

impl RemappedDelivery {
    const fn from_bits(bits: u8) -> Result<Self, IrteError> {
        match bits {
            0 => Ok(Self::Fixed),
            1 => Ok(Self::LowestPriority),
            2 => Ok(Self::Smi),
            4 => Ok(Self::Nmi),
            5 => Ok(Self::Init),
            7 => Ok(Self::ExtInt),
            _ => Err(IrteError::Delivery(bits)),
        }
    }
}

/// Why an entry means nothing or cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IrteError {
    /// These reserved bits are set.
    Reserved(u128),
    /// A reserved delivery mode.
    Delivery(u8),
    /// The reserved source-validation type 3.
    Source,
    /// A descriptor at this address is not aligned to 64 bytes.
    Misaligned(PhysAddr),
}

impl fmt::Display for IrteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved(bits) => write!(f, "reserved bits {bits:#x} are set"),
            Self::Delivery(mode) => write!(f, "delivery mode {mode} is reserved"),
            Self::Source => f.write_str("source-validation type 3 is reserved"),
            Self::Misaligned(address) => {
                write!(f, "posted-interrupt descriptor at {address} is not aligned to 64 bytes")
            }
        }
    }
}

impl Error for IrteError {}

#[cfg(test)]
mod tests;
