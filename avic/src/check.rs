//! The checks of VMRUN on everything about AVIC, with names for what they find.

use core::error::Error;
use core::fmt;

use crate::capability::Capabilities;
use crate::face::Face;
use crate::vmcb::{Field, Fields, InterruptControl, Vmcb};

/// Does to `vmcb` the checks of VMRUN that are about interrupts, and names the first field that is
/// wrong. The processor itself says only VMEXIT_INVALID, and of some things nothing.
///
/// APM Vol. 2 15.29.4.1, 15.29.4.3, 15.21.10. What is not checked: that tables and pages are
/// write-back memory, and with SEV-SNP that they belong to the hypervisor.
///
/// # Errors
/// The first rule that is broken. There may be more.
pub fn check<V: Vmcb + ?Sized>(vmcb: &V, caps: &Capabilities) -> Result<(), Inconsistent> {
    let control = vmcb.interrupt_control();
    require(control.bits() & InterruptControl::RESERVED == 0, || {
        Inconsistent::Reserved(Field::InterruptControl, control.bits() & InterruptControl::RESERVED)
    })?;
    if control.contains(InterruptControl::V_NMI_ENABLE) {
        require(caps.vnmi, || Inconsistent::NotSupported(InterruptControl::V_NMI_ENABLE))?;
        let intercepts = vmcb.read(Field::Intercepts);
        require(intercepts & INTERCEPT_NMI != 0, || Inconsistent::NmiNotIntercepted)?;
    }
    let x2avic = control.contains(InterruptControl::X2AVIC_ENABLE);
    let avic = control.contains(InterruptControl::AVIC_ENABLE);
    require(avic || !x2avic, || Inconsistent::X2AvicWithoutAvic)?;
    if !avic {
        return Ok(());
    }
    require(caps.avic, || Inconsistent::NotSupported(InterruptControl::AVIC_ENABLE))?;
    require(caps.x2avic || !x2avic, || {
        Inconsistent::NotSupported(InterruptControl::X2AVIC_ENABLE)
    })?;
    require(vmcb.read(Field::NestedPaging) & 1 != 0, || Inconsistent::NoNestedPaging)?;
    check_pointers(vmcb, caps)?;
    check_max_index(vmcb, caps)
}

/// 00C bit 1, in the upper half of word 008.
const INTERCEPT_NMI: u64 = 1 << 33;

fn check_pointers<V: Vmcb + ?Sized>(vmcb: &V, caps: &Capabilities) -> Result<(), Inconsistent> {
    let used: &[Field] = match Face::of(vmcb) {
        Face::X2Avic => &[Field::BackingPage, Field::PhysicalTable],
        _ => &[Field::BackingPage, Field::PhysicalTable, Field::LogicalTable, Field::ApicBar],
    };
    for &field in used {
        let mut word = vmcb.read(field);
        let mut last = 0;
        if field == Field::PhysicalTable {
            // The table has a page for each 512 indices.
            last = word >> 9 & 7;
            word &= !0xFFF;
        }
        require(word & 0xFFF == 0, || Inconsistent::Reserved(field, word & 0xFFF))?;
        // V_APIC_BAR is guest-physical and has 52 bits.
        let bits = if field == Field::ApicBar { 52 } else { u32::from(caps.address_bits.min(52)) };
        let end = word.saturating_add(last << 12);
        require(end >> bits == 0, || Inconsistent::OutOfReach(field, word))?;
    }
    Ok(())
}

fn check_max_index<V: Vmcb + ?Sized>(vmcb: &V, caps: &Capabilities) -> Result<(), Inconsistent> {
    let index = (vmcb.read(Field::PhysicalTable) & 0xFFF) as u16;
    let limit = match Face::of(vmcb) {
        Face::X2Avic if caps.x2avic_extended => 0xFFF,
        Face::X2Avic => 0x1FF,
        _ => 0xFF,
    };
    require(index <= limit, || Inconsistent::MaxIndex { index, limit })
}

fn require(holds: bool, error: impl FnOnce() -> Inconsistent) -> Result<(), Inconsistent> {
    if holds { Ok(()) } else { Err(error()) }
}

/// A rule of VMRUN that a VMCB breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inconsistent {
    /// These bits of the field must be zero.
    Reserved(Field, u64),
    /// The processor does not have this bit of [`Field::InterruptControl`].
    NotSupported(u64),
    /// [`Field::InterruptControl`]: x2AVIC enable without AVIC enable.
    X2AvicWithoutAvic,
    /// [`Field::NestedPaging`]: AVIC without nested paging.
    NoNestedPaging,
    /// [`Field::Intercepts`]: virtual NMIs without the intercept of NMI.
    NmiNotIntercepted,
    /// The address reaches beyond what the processor implements.
    OutOfReach(Field, u64),
    /// [`Field::PhysicalTable`]: AVIC_PHYSICAL_MAX_INDEX is above what the face allows.
    MaxIndex {
        /// The index.
        index: u16,
        /// The highest that is allowed.
        limit: u16,
    },
}

impl Inconsistent {
    /// The field that is wrong.
    #[must_use]
    pub const fn field(&self) -> Field {
        match *self {
            Self::Reserved(field, _) | Self::OutOfReach(field, _) => field,
            Self::NotSupported(_) | Self::X2AvicWithoutAvic => Field::InterruptControl,
            Self::NoNestedPaging => Field::NestedPaging,
            Self::NmiNotIntercepted => Field::Intercepts,
            Self::MaxIndex { .. } => Field::PhysicalTable,
        }
    }
}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.field())?;
        match self {
            Self::Reserved(_, bits) => write!(f, "bits {bits:#x} must be zero"),
            Self::NotSupported(bit) => write!(f, "bit {bit:#x} is not supported"),
            Self::X2AvicWithoutAvic => f.write_str("x2AVIC without AVIC"),
            Self::NoNestedPaging => f.write_str("AVIC without nested paging"),
            Self::NmiNotIntercepted => f.write_str("virtual NMIs without the NMI intercept"),
            Self::OutOfReach(_, address) => write!(f, "{address:#x} is beyond physical memory"),
            Self::MaxIndex { index, limit } => {
                write!(f, "maximum index {index:#x} is above {limit:#x}")
            }
        }
    }
}

impl Error for Inconsistent {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::vmcb::VmcbPage;

    const CAPS: Capabilities = Capabilities {
        avic: true,
        x2avic: true,
        x2avic_extended: false,
        extended_lvt: false,
        nested_paging: true,
        vmcb_clean: true,
        next_rip: true,
        vgif: true,
        vnmi: true,
        idle_hlt: false,
        host_x2apic: true,
        erratum_1235: false,
        snp_writes_in_use_pages: false,
        address_bits: 40,
    };

    fn good(x2avic: bool) -> VmcbPage {
        let mut vmcb = VmcbPage::new();
        vmcb.store(0x060, 0x8100_0000 | u64::from(x2avic) << 30);
        vmcb.store(0x090, 1);
        vmcb.store(0x098, 0xFEE0_0000);
        vmcb.store(0x0E0, 0x12_3456_7000);
        vmcb.store(0x0F0, 0x12_3456_8000);
        vmcb.store(0x0F8, 0x12_3456_90FE);
        vmcb
    }

    fn with(x2avic: bool, offset: u16, value: u64) -> Result<(), Inconsistent> {
        let mut vmcb = good(x2avic);
        vmcb.store(offset, value);
        check(&vmcb, &CAPS)
    }

    #[test]
    fn a_good_one_passes_and_so_does_one_without_avic() {
        assert_eq!(check(&good(false), &CAPS), Ok(()));
        assert_eq!(check(&good(true), &CAPS), Ok(()));
        assert_eq!(check(&VmcbPage::new(), &Capabilities::default()), Ok(()));
    }

    #[test]
    fn every_rule_names_its_field() {
        use Inconsistent::*;
        for (x2avic, offset, value, expected) in [
            (false, 0x060, 1 << 30, X2AvicWithoutAvic),
            (false, 0x060, 1 << 31 | 1 << 10, Reserved(Field::InterruptControl, 1 << 10)),
            (false, 0x060, 1 << 31 | 1 << 26, NmiNotIntercepted),
            (false, 0x090, 0, NoNestedPaging),
            (false, 0x098, 0xFEE0_0010, Reserved(Field::ApicBar, 0x10)),
            (false, 0x098, 1 << 52, OutOfReach(Field::ApicBar, 1 << 52)),
            (false, 0x0E0, 0x1008, Reserved(Field::BackingPage, 8)),
            (true, 0x0E0, 1 << 40, OutOfReach(Field::BackingPage, 1 << 40)),
            (false, 0x0F0, 0x1001, Reserved(Field::LogicalTable, 1)),
            (false, 0x0F0, 1 << 40, OutOfReach(Field::LogicalTable, 1 << 40)),
            (true, 0x0F8, 1 << 40, OutOfReach(Field::PhysicalTable, 1 << 40)),
            (false, 0x0F8, 0x1100, MaxIndex { index: 0x100, limit: 0xFF }),
            (true, 0x0F8, 0x1200, MaxIndex { index: 0x200, limit: 0x1FF }),
        ] {
            let error = with(x2avic, offset, value).unwrap_err();
            assert_eq!(error, expected);
            // 00C is half of word 008.
            let named = if error == NmiNotIntercepted { 0x008 } else { offset };
            assert_eq!(error.field().offset(), named);
            assert!(error.to_string().starts_with(&std::format!("VMCB field {named:03X}: ")));
        }
    }

    #[test]
    fn limits_and_what_x2avic_does_not_use() {
        assert_eq!(with(false, 0x0F8, 0x10FF), Ok(()));
        assert_eq!(with(true, 0x0F8, 0x11FF), Ok(()));
        assert_eq!(with(true, 0x098, 1), Ok(()));
        assert_eq!(with(true, 0x0F0, 1), Ok(()));
        let extended = Capabilities { x2avic_extended: true, ..CAPS };
        let mut vmcb = good(true);
        vmcb.store(0x0F8, 0x1FFF);
        assert_eq!(check(&vmcb, &extended), Ok(()));
        // The eighth page would be the first beyond 40 bits.
        vmcb.store(0x0F8, ((1 << 40) - 0x7000) | 0xFFF);
        assert!(matches!(check(&vmcb, &extended), Err(Inconsistent::OutOfReach(..))));
    }

    #[test]
    fn what_the_processor_lacks() {
        let lacks = |caps| check(&good(true), &caps);
        let avic = Capabilities { avic: false, ..CAPS };
        let x2avic = Capabilities { x2avic: false, ..CAPS };
        assert_eq!(lacks(avic), Err(Inconsistent::NotSupported(1 << 31)));
        assert_eq!(lacks(x2avic), Err(Inconsistent::NotSupported(1 << 30)));
        let mut vmcb = good(false);
        vmcb.store(0x008, INTERCEPT_NMI);
        vmcb.store(0x060, 1 << 31 | 1 << 26);
        assert_eq!(check(&vmcb, &CAPS), Ok(()));
        let vnmi = Capabilities { vnmi: false, ..CAPS };
        assert_eq!(check(&vmcb, &vnmi), Err(Inconsistent::NotSupported(1 << 26)));
    }
}
