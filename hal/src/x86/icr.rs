//! The interrupt command register's value for one fixed interrupt to one CPU.

use crate::SendError;

/// Bit 14, level: 1 for everything but an INIT de-assert (SDM vol. 3, "Interrupt Command Register").
const ASSERT: u32 = 1 << 14;

/// Bits 31:0: fixed delivery, physical destination, edge-triggered, no shorthand.
pub(super) const fn low(vector: u8) -> Result<u32, SendError> {
    if vector < 16 {
        return Err(SendError::Vector(vector));
    }
    Ok(ASSERT | vector as u32)
}

/// Bits 63:32 in xAPIC mode: the ID in bits 31:24 of the high word. 0xFF would be a broadcast.
pub(super) const fn xapic_high(destination: u32) -> Result<u32, SendError> {
    if destination >= 0xff {
        return Err(SendError::Destination(destination));
    }
    Ok(destination << 24)
}

/// Bits 63:32 in x2APIC mode: the ID. 0xFFFF_FFFF would be a broadcast.
pub(super) const fn x2apic_high(destination: u32) -> Result<u32, SendError> {
    if destination == u32::MAX {
        return Err(SendError::Destination(destination));
    }
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_vectors_are_refused() {
        assert_eq!(low(15), Err(SendError::Vector(15)));
        assert_eq!(low(16), Ok(0x4010));
        assert_eq!(low(255), Ok(0x40ff));
    }

    #[test]
    fn broadcasts_are_refused() {
        assert_eq!(xapic_high(0xfe), Ok(0xfe00_0000));
        assert_eq!(xapic_high(0xff), Err(SendError::Destination(0xff)));
        assert_eq!(xapic_high(0x100), Err(SendError::Destination(0x100)));
        assert_eq!(x2apic_high(0x100), Ok(0x100));
        assert_eq!(x2apic_high(u32::MAX), Err(SendError::Destination(u32::MAX)));
    }
}
