use crate::{FieldWidth, Vmcs, VmcsError, VmcsField};

/// A VMCS in memory with room for `N` fields.
///
/// It has every field that appendix B's encoding can express, each 0 until written, and behaves as
/// VMREAD and VMWRITE do: widths are kept, an odd encoding reaches the high half of a 64-bit field,
/// read-only fields refuse. It checks no values and enters no guest. To leave out fields as an older
/// processor does, wrap it in a [`FaultInjector`](crate::wrap::FaultInjector).
///
/// ```
/// use vlapic_hal::fake::MemoryVmcs;
/// use vlapic_hal::{Vmcs, VmcsError, VmcsField};
///
/// const EXIT_REASON: VmcsField = VmcsField::new(0x4402);
///
/// let mut vmcs = MemoryVmcs::<16>::new();
/// assert_eq!(vmcs.write(EXIT_REASON, 56), Err(VmcsError::ReadOnly(EXIT_REASON)));
/// vmcs.set(EXIT_REASON, 56)?; // as the processor would on a VM exit
/// assert_eq!(vmcs.read(EXIT_REASON), Ok(56));
/// # Ok::<(), VmcsError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemoryVmcs<const N: usize> {
    /// Whole fields only, in the order of their first write.
    fields: [Option<(VmcsField, u64)>; N],
}

impl<const N: usize> MemoryVmcs<N> {
    /// A VMCS in which nothing has been written.
    pub const fn new() -> Self {
        Self { fields: [None; N] }
    }

    /// Sets a field, read-only or not, as the processor does on a VM exit.
    ///
    /// # Errors
    /// [`VmcsError::Unsupported`] if no field can have this encoding, [`VmcsError::Unavailable`] if
    /// `N` other fields have been written.
    pub fn set(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        check(field)?;
        let stored = self.entry(field.whole());
        let stored = stored.ok_or(VmcsError::Unavailable(field))?;
        *stored = if field.is_high_half() {
            *stored & 0xffff_ffff | value << 32
        } else {
            value & field.mask()
        };
        Ok(())
    }

    /// The whole fields written so far with their values, in the order of their first write.
    pub fn written(&self) -> impl Iterator<Item = (VmcsField, u64)> + '_ {
        self.fields.iter().flatten().copied()
    }

    fn entry(&mut self, whole: VmcsField) -> Option<&mut u64> {
        let is_free_or_it =
            |entry: &&mut Option<(VmcsField, u64)>| entry.is_none_or(|(field, _)| field == whole);
        let entry = self.fields.iter_mut().find(is_free_or_it)?;
        Some(&mut entry.get_or_insert((whole, 0)).1)
    }
}

impl<const N: usize> Default for MemoryVmcs<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Vmcs for MemoryVmcs<N> {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        check(field)?;
        let mut written = self.written();
        let stored = written.find(|(stored, _)| *stored == field.whole());
        let value = stored.map_or(0, |(_, value)| value);
        Ok(if field.is_high_half() { value >> 32 } else { value })
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        check(field)?;
        if field.is_read_only() {
            return Err(VmcsError::ReadOnly(field));
        }
        self.set(field, value)
    }
}

/// Reserved bits of the encoding must be 0, and only 64-bit fields have a high half.
fn check(field: VmcsField) -> Result<(), VmcsError> {
    const RESERVED: u32 = 0xffff_9000;
    let is_halved = field.width() == FieldWidth::Bits64;
    if field.encoding() & RESERVED != 0 || field.is_high_half() && !is_halved {
        return Err(VmcsError::Unsupported(field));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    const STATUS: VmcsField = VmcsField::new(0x0810);
    const BITMAP: VmcsField = VmcsField::new(0x201c);
    const BITMAP_HIGH: VmcsField = VmcsField::new(0x201d);
    const THRESHOLD: VmcsField = VmcsField::new(0x401c);

    #[test]
    fn values_are_cut_to_the_field() {
        let mut vmcs = MemoryVmcs::<4>::new();
        for (field, expected) in [(STATUS, 0xffff), (THRESHOLD, 0xffff_ffff), (BITMAP, u64::MAX)] {
            assert_eq!(vmcs.read(field), Ok(0));
            assert_eq!(vmcs.write(field, u64::MAX), Ok(()));
            assert_eq!(vmcs.read(field), Ok(expected));
        }
    }

    #[test]
    fn halves_of_a_64_bit_field() {
        let mut vmcs = MemoryVmcs::<1>::new();
        assert_eq!(vmcs.write(BITMAP, 0x1111_2222_3333_4444), Ok(()));
        assert_eq!(vmcs.read(BITMAP_HIGH), Ok(0x1111_2222));
        assert_eq!(vmcs.write(BITMAP_HIGH, 0xdead_5555_6666), Ok(()));
        assert_eq!(vmcs.read(BITMAP), Ok(0x5555_6666_3333_4444));
        let written: Vec<_> = vmcs.written().collect();
        assert_eq!(written, [(BITMAP, 0x5555_6666_3333_4444)]);
    }

    #[test]
    fn encodings_that_no_field_has() {
        let mut vmcs = MemoryVmcs::<1>::new();
        for encoding in [0x0811, 0x401d, 0x6401, 0x1810, 0x8810, 0x1_0810] {
            let field = VmcsField::new(encoding);
            assert_eq!(vmcs.read(field), Err(VmcsError::Unsupported(field)));
            assert_eq!(vmcs.write(field, 0), Err(VmcsError::Unsupported(field)));
        }
    }

    #[test]
    fn a_full_store_keeps_what_it_has() {
        let mut vmcs = MemoryVmcs::<1>::new();
        assert_eq!(vmcs.write(STATUS, 1), Ok(()));
        assert_eq!(vmcs.write(THRESHOLD, 2), Err(VmcsError::Unavailable(THRESHOLD)));
        assert_eq!(vmcs.write(STATUS, 3), Ok(()));
        assert_eq!(vmcs.read(STATUS), Ok(3));
    }
}
