//! Physical addresses by a constant offset.

use crate::{PhysAddr, Translate};

/// A range of virtual addresses mapped to contiguous physical memory: a direct map, the kernel
/// image, or everything where paging is the identity.
#[derive(Clone, Copy, Debug)]
pub struct LinearMap {
    virtual_start: usize,
    physical_start: u64,
    length: usize,
}

impl LinearMap {
    /// The `length` bytes from `virtual_start` on are mapped to `physical_start` on.
    ///
    /// # Safety
    /// The mapping is as said for as long as any address that the value gave is in use by the
    /// processor: it will write there (SDM vol. 3, "Virtual-APIC Address", "Posted-Interrupt
    /// Descriptor Address"), and a wrong answer is memory corruption.
    pub const unsafe fn new(virtual_start: usize, physical_start: u64, length: usize) -> Self {
        Self { virtual_start, physical_start, length }
    }

    /// Every virtual address is the physical address.
    ///
    /// # Safety
    /// As [`new`](Self::new), for all memory that objects of this program lie in.
    pub const unsafe fn identity() -> Self {
        Self { virtual_start: 0, physical_start: 0, length: usize::MAX }
    }

    fn translate(&self, start: usize, size: usize) -> Option<PhysAddr> {
        let offset = start.checked_sub(self.virtual_start)?;
        if offset.checked_add(size)? > self.length {
            return None;
        }
        let offset = u64::try_from(offset).ok()?;
        self.physical_start.checked_add(offset).map(PhysAddr::new)
    }
}

impl Translate for LinearMap {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        let start = core::ptr::from_ref(object).cast::<u8>().addr();
        self.translate(start, size_of_val(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(virtual_start: usize, physical_start: u64, length: usize) -> LinearMap {
        // SAFETY: these tests give no address to a processor.
        unsafe { LinearMap::new(virtual_start, physical_start, length) }
    }

    #[test]
    fn only_whole_objects_inside_the_map_have_an_address() {
        let map = map(0xffff_8000_0000_0000, 0x10_0000, 0x3000);
        let base = 0xffff_8000_0000_0000;
        assert_eq!(map.translate(base, 4096), Some(PhysAddr::new(0x10_0000)), "first page");
        assert_eq!(map.translate(base + 0x2000, 4096), Some(PhysAddr::new(0x10_2000)), "last page");
        assert_eq!(map.translate(base + 0x2001, 4096), None, "runs over the end");
        assert_eq!(map.translate(base - 1, 1), None, "before the start");
        assert_eq!(map.translate(usize::MAX, 2), None, "wraps");
    }

    #[test]
    fn a_map_beyond_physical_memory_has_no_address() {
        assert_eq!(map(0, u64::MAX, 0x1000).translate(1, 1), None);
    }

    #[test]
    fn identity_is_the_object_s_own_address() {
        let object = [0_u8; 64];
        // SAFETY: as above.
        let map = unsafe { LinearMap::identity() };
        let expected = PhysAddr::new(object.as_ptr().addr() as u64);
        assert_eq!(map.physical_address(&object), Some(expected));
        assert_eq!(map.physical_address(&object[..]), Some(expected));
    }
}
