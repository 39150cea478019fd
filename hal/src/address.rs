//! Physical addresses of our own structures.

use core::fmt;

/// A host-physical address, in bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `address`.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address as a number, as VMCS and VMCB fields hold it.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether the address is a multiple of `alignment`, a power of two.
    pub const fn is_aligned(self, alignment: u64) -> bool {
        self.0 & alignment.wrapping_sub(1) == 0
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysAddr({:#x})", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Finds where an object of ours lies in physical memory, so that the processor can be told.
pub trait Translate {
    /// The physical address of the first byte of `object`, if the whole object is mapped to
    /// contiguous physical memory; otherwise `None`.
    ///
    /// The answer holds for as long as the object is not moved.
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr>;
}

impl<T: Translate> Translate for &T {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        (**self).physical_address(object)
    }
}

impl<T: Translate> Translate for &mut T {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        (**self).physical_address(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment() {
        assert!(PhysAddr::new(0x1000).is_aligned(4096));
        assert!(!PhysAddr::new(0x1040).is_aligned(4096));
        assert!(PhysAddr::new(0x1040).is_aligned(64));
    }
}
