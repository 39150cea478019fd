//! Xen's records of one vCPU, within a stream of records.

use super::bytes::{store, u16_at, u32_at};
use super::error::ImportError;

/// The two records about a vCPU's APIC.
///
/// Both are taken together, so it does not matter which stands first in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenRecords<'b> {
    /// The payload of record LAPIC: 16, 24 or 32 bytes.
    pub lapic: &'b [u8],
    /// The payload of record LAPIC_REGS: 1024 bytes.
    pub registers: &'b [u8],
}

impl<'b> XenRecords<'b> {
    /// The type of record LAPIC.
    pub const LAPIC: u16 = 5;
    /// The type of record LAPIC_REGS.
    pub const LAPIC_REGS: u16 = 6;

    const END: u16 = 0;
    const DESCRIPTOR: usize = 8;

    /// The records of vCPU `instance` in `stream`, which may hold others: descriptors of 8 bytes, each
    /// followed by its payload, until one of type 0 or the end of the bytes.
    ///
    /// # Errors
    /// [`ImportError::Framing`] if the stream ends inside a record or has one of the two twice;
    /// [`ImportError::MissingRecord`].
    pub fn find(stream: &'b [u8], instance: u16) -> Result<Self, ImportError> {
        let (mut lapic, mut registers) = (None, None);
        let mut rest = stream;
        while !rest.is_empty() {
            let (descriptor, after) =
                rest.split_at_checked(Self::DESCRIPTOR).ok_or(ImportError::Framing)?;
            let (kind, of, length) =
                (u16_at(descriptor, 0), u16_at(descriptor, 2), u32_at(descriptor, 4));
            let length = usize::try_from(length).map_err(|_| ImportError::Framing)?;
            let (payload, next) = after.split_at_checked(length).ok_or(ImportError::Framing)?;
            rest = next;
            let place = match kind {
                Self::END => break,
                Self::LAPIC if of == instance => &mut lapic,
                Self::LAPIC_REGS if of == instance => &mut registers,
                _ => continue,
            };
            if place.replace(payload).is_some() {
                return Err(ImportError::Framing);
            }
        }
        match (lapic, registers) {
            (None, _) => Err(ImportError::MissingRecord(Self::LAPIC)),
            (_, None) => Err(ImportError::MissingRecord(Self::LAPIC_REGS)),
            (Some(lapic), Some(registers)) => Ok(Self { lapic, registers }),
        }
    }

    /// The 8 bytes before a record's payload.
    #[must_use]
    pub fn descriptor(kind: u16, instance: u16, length: u32) -> [u8; 8] {
        let mut bytes = [0; Self::DESCRIPTOR];
        store(&mut bytes, 0, &kind.to_le_bytes());
        store(&mut bytes, 2, &instance.to_le_bytes());
        store(&mut bytes, 4, &length.to_le_bytes());
        bytes
    }
}
