//! The VMCS as a table of fields.

use vlapic_hal::{Vmcs, VmcsError, VmcsField};

use super::capability::{Capability, Feature};
use super::field;

/// The VMCS region of one virtual CPU.
///
/// It can be programmed directly, or through a [`Core`](super::Core) on which it is current. It moves between cores as
/// a value, as VMCLEAR and VMPTRLD would move it.
#[derive(Debug, Clone)]
pub struct VmcsRegion {
    capability: Capability,
    values: Vec<(u32, u64)>,
    too_wide: Vec<(u32, u64)>,
}

impl VmcsRegion {
    /// A region with every field 0.
    pub fn new(capability: Capability) -> Self {
        let values = field::ALL.iter().map(|&encoding| (encoding, 0)).collect();
        VmcsRegion { capability, values, too_wide: Vec::new() }
    }

    /// A region in which every control that must be 1 is 1, and nothing else: where a hypervisor starts.
    pub fn with_default_controls(capability: Capability) -> Self {
        let mut region = Self::new(capability);
        region.set(field::PIN_BASED, capability.pin().must.into());
        region.set(field::PRIMARY, capability.primary().must.into());
        region.set(field::VM_EXIT_CONTROLS, capability.exit().must.into());
        region.set(field::VM_ENTRY_CONTROLS, 0x11fb);
        region.set(field::GUEST_RFLAGS, 0x2);
        region
    }

    /// The whole value of a field, whether or not software could read it. Unknown fields are 0.
    pub fn get(&self, encoding: u32) -> u64 {
        self.values.iter().find(|(known, _)| *known == encoding).map_or(0, |(_, value)| *value)
    }

    /// Sets a field, whether or not software could write it.
    ///
    /// # Panics
    /// If the model does not know the field or the value is wider than it.
    pub fn set(&mut self, encoding: u32, value: u64) {
        assert_eq!(
            value & !VmcsField::new(encoding).mask(),
            0,
            "{value:#x} does not fit field {encoding:#x}"
        );
        *self.slot(encoding).expect("a field that the model knows") = value;
    }

    /// Sets some bits of a field and leaves the others.
    pub fn set_bits(&mut self, encoding: u32, bits: u32) {
        self.set(encoding, self.get(encoding) | u64::from(bits));
    }

    /// The writes whose value was wider than the field, with the value as it was given.
    ///
    /// VMWRITE drops the surplus bits in silence, so a driver that relies on it has a bug worth seeing.
    pub fn too_wide_writes(&self) -> &[(u32, u64)] {
        &self.too_wide
    }

    /// The processor that the region was made for.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    fn slot(&mut self, encoding: u32) -> Option<&mut u64> {
        self.values.iter_mut().find(|(known, _)| *known == encoding).map(|(_, value)| value)
    }

    /// Whether VMREAD and VMWRITE know the field on this processor.
    fn exists(&self, field: VmcsField) -> bool {
        let whole = field.whole().encoding();
        let high_of_short_field = field.is_high_half() && VmcsField::new(whole).mask() != u64::MAX;
        let offered =
            field::needs(whole).is_none_or(|feature: Feature| self.capability.has(feature));
        field::ALL.contains(&whole) && offered && !high_of_short_field
    }
}

impl Vmcs for VmcsRegion {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        if !self.exists(field) {
            return Err(VmcsError::Unsupported(field));
        }
        let whole = self.get(field.whole().encoding());
        Ok(if field.is_high_half() { whole >> 32 } else { whole })
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        if !self.exists(field) {
            return Err(VmcsError::Unsupported(field));
        }
        if field.is_read_only() {
            return Err(VmcsError::ReadOnly(field));
        }
        if value & !field.mask() != 0 {
            self.too_wide.push((field.encoding(), value));
        }
        let value = value & field.mask();
        let whole = field.whole().encoding();
        let old = self.get(whole);
        let new = if field.is_high_half() { old & 0xffff_ffff | value << 32 } else { value };
        self.set(whole, new);
        Ok(())
    }
}
