//! Why a state was not imported.

use core::fmt;

/// Why a state was not imported. The APIC is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportError {
    /// The bytes do not begin with our format's magic number.
    NotOurs,
    /// A version of our format that this crate does not know.
    Version(u16),
    /// The record, or the length it claims, is not one that the format has.
    Length(usize),
    /// The checksum is wrong.
    Checksum,
    /// The field at this byte offset holds what no export writes.
    Field(u16),
    /// IA32_APIC_BASE has a reserved bit, or EXTD without EN.
    ApicBase(u64),
    /// The state is of the vCPU with another APIC ID.
    ApicId {
        /// The ID in the record.
        found: u32,
        /// The slot's.
        expected: u32,
    },
    /// The state is of the other vendor's APIC.
    Vendor,
    /// The guest uses what the slot's profile has not.
    Unsupported(Feature),
    /// A vector below 16 in ISR, TMR or IRR, which no export writes.
    IllegalVector,
    /// The upcall's vector is below 16.
    UpcallVector(u8),
    /// A stream of records ends inside one, or has one twice.
    Framing,
    /// A stream has no record of this type (5 LAPIC, 6 LAPIC_REGS) for the vCPU.
    MissingRecord(u16),
}

/// What an APIC may have or not: see [`Profile`](crate::Profile).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// x2APIC mode.
    X2Apic,
    /// The TSC-deadline timer.
    TscDeadline,
    /// The CMCI entry.
    Cmci,
    /// Suppression of EOI broadcasts, SVR bit 12.
    EoiSuppression,
    /// An APIC ID that the guest may rewrite in xAPIC mode.
    WritableId,
    /// AMD's extended space.
    ExtendedSpace,
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("not a local APIC's state"),
            Self::Version(version) => write!(f, "version {version} is not known"),
            Self::Length(length) => write!(f, "a length of {length} bytes is not possible"),
            Self::Checksum => f.write_str("the checksum is wrong"),
            Self::Field(offset) => write!(f, "the field at byte {offset} is not possible"),
            Self::ApicBase(bits) => write!(f, "IA32_APIC_BASE {bits:#x} is not possible"),
            Self::ApicId { found, expected } => {
                write!(f, "APIC ID {found:#x} in place of {expected:#x}")
            }
            Self::Vendor => f.write_str("the other vendor's APIC"),
            Self::Unsupported(feature) => write!(f, "the guest uses {feature}, not to be had here"),
            Self::IllegalVector => f.write_str("a vector below 16 in ISR, TMR or IRR"),
            Self::UpcallVector(vector) => write!(f, "upcall vector {vector:#x} is below 16"),
            Self::Framing => f.write_str("the records are not whole, or not one of each"),
            Self::MissingRecord(kind) => write!(f, "no record of type {kind}"),
        }
    }
}

impl core::error::Error for ImportError {}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X2Apic => "x2APIC mode",
            Self::TscDeadline => "the TSC-deadline timer",
            Self::Cmci => "the CMCI entry",
            Self::EoiSuppression => "EOI-broadcast suppression",
            Self::WritableId => "a changed APIC ID",
            Self::ExtendedSpace => "the extended register space",
        })
    }
}
