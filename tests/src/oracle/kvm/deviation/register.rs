//! Rows about single registers. The tables here are written from the manuals, not from the crate.

use vlapic_core::{LvtEntry, Register};

use super::Deviation;
use crate::oracle::kvm::operation::Size;
use crate::oracle::kvm::setup::Setup;
use crate::oracle::kvm::state::View;

/// The bits that WRMSR of `register` must leave zero and that the kernel drops instead, in the lower
/// half (SDM Vol. 3A Table 10-6 and the registers' figures).
pub(in super::super) const fn reserved(register: Register, setup: &Setup) -> u64 {
    match register {
        Register::Tpr => 0xFFFF_FF00,
        Register::Eoi => 0xFFFF_FFFF,
        Register::Svr if setup.split => 0xFFFF_EC00,
        Register::Svr => 0xFFFF_FC00,
        Register::Lvt(LvtEntry::Timer) => 0xFFF8_EF00,
        Register::Lvt(LvtEntry::Thermal | LvtEntry::Performance) => 0xFFFE_E800,
        Register::Lvt(LvtEntry::Lint0 | LvtEntry::Lint1) => 0xFFFE_0800,
        Register::Lvt(LvtEntry::Error) => 0xFFFE_EF00,
        Register::DivideConfiguration => 0xFFFF_FFF4,
        _ => 0,
    }
}

/// Whether the slot at `offset` is a register of xAPIC mode, implemented or not.
pub(super) const fn exists(offset: u16) -> bool {
    matches!(
        offset,
        0x020 | 0x030 | 0x080..=0x280 | 0x300..=0x390 | 0x3E0
    )
}

/// Whether a load at `offset` is defined to give a register's bytes.
pub(super) const fn readable(offset: u16, size: Size) -> bool {
    let bytes = match size {
        Size::Byte => 1,
        Size::Word => 2,
        Size::Dword => 4,
    };
    let slot = offset & 0xFF0;
    offset & 0xF <= 4 - bytes && exists(slot) && !matches!(slot, 0x0B0 | 0x0C0)
}

/// Explains what differs in the one register that was written with `value`.
pub(super) fn explain(
    register: Register,
    value: u64,
    before: &View,
    ours: &mut View,
    kernel: &View,
    setup: &Setup,
) -> Option<Deviation> {
    let value = value as u32;
    let (our, its) = (ours.word(register), kernel.word(register));
    if our == its {
        return None;
    }
    let extra = |bits| our & bits == 0 && its == our | value & bits;
    let row = match register {
        Register::Lvt(LvtEntry::Lint0 | LvtEntry::Lint1) if extra(0x5000) => Deviation::LvtReadOnly,
        Register::Lvt(
            LvtEntry::Timer | LvtEntry::Thermal | LvtEntry::Performance | LvtEntry::Error,
        ) if extra(0x1000) => Deviation::LvtReadOnly,
        Register::Svr if extra(0x200) => Deviation::FocusCheck,
        Register::IcrLow if our == value & 0xC_CFFF && its == value & !0x1000 => {
            Deviation::IcrReserved
        }
        Register::Id
            if !setup.writable_id
                && our == before.word(Register::Id)
                && its == value & 0xFF00_0000 =>
        {
            Deviation::XApicIdWritable
        }
        _ => return None,
    };
    ours.set_word(register, its);
    Some(row)
}
