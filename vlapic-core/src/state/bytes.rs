//! Little-endian fields at fixed places. A place outside the bytes reads as zero and takes no
//! store; formats check lengths first, so this does not happen.

use crc::{CRC_32_ISO_HDLC, Crc};

pub(super) fn load<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().unwrap_or([0; N])
}

pub(super) fn store<const N: usize>(bytes: &mut [u8], at: usize, field: &[u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = *field;
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(load(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(load(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(load(bytes, at))
}

/// CRC-32 as of ISO 3309 (reflected, polynomial EDB88320) over `parts` in turn.
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut digest = CRC.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let mut bytes = [0u8; 8];
        store(&mut bytes, 2, &0x1234_5678u32.to_le_bytes());
        assert_eq!(bytes, [0, 0, 0x78, 0x56, 0x34, 0x12, 0, 0]);
        assert_eq!(u32_at(&bytes, 2), 0x1234_5678);
        assert_eq!(u32_at(&bytes, 5), 0, "outside");
        store(&mut bytes, 7, &[1, 2]);
        assert_eq!(bytes[7], 0, "not wholly inside");
    }

    /// The check value that the literature gives for this CRC.
    #[test]
    fn check_value() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xCBF4_3926);
    }
}
