//! The access table: what hardware does with each register of the backing page.

use super::capability::{Capability, Feature};
use super::knobs::Knobs;

/// How one kind of access to one register is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// The backing page is read or written, and that is all.
    Memory,
    /// Hardware carries out what the register does.
    Accelerated,
    /// The page is written, then the guest exits.
    Trap,
    /// The guest exits; the page is not touched.
    Fault,
}

/// How a read at a page offset is handled.
pub(super) fn read(offset: u32, capability: Capability, knobs: &Knobs) -> Handling {
    match offset {
        0x020 | 0x030 | 0x080 | 0x3e0 => Handling::Memory,
        0x0a0..=0x280 | 0x300..=0x380 if is_slot(offset) => Handling::Memory,
        0x090 | 0x390 => Handling::Fault,
        _ => extended_or_unnamed(offset, Handling::Memory, capability, knobs),
    }
}

/// How a write at a page offset is handled.
pub(super) fn write(offset: u32, capability: Capability, knobs: &Knobs) -> Handling {
    match offset {
        0x0f0 if knobs.svr_writes_never_exit => Handling::Memory,
        0x020 | 0x0c0 | 0x0d0 | 0x0e0 | 0x0f0 | 0x280 | 0x380 | 0x3e0 => Handling::Trap,
        0x320..=0x370 if is_slot(offset) => Handling::Trap,
        0x080 | 0x0b0 | 0x300 => Handling::Accelerated,
        0x310 => Handling::Memory,
        0x030 | 0x090 | 0x0a0 | 0x390 => Handling::Fault,
        0x100..=0x270 if is_slot(offset) => Handling::Fault,
        _ => extended_or_unnamed(offset, Handling::Trap, capability, knobs),
    }
}

fn extended_or_unnamed(
    offset: u32,
    extended_lvt: Handling,
    capability: Capability,
    knobs: &Knobs,
) -> Handling {
    match offset {
        0x500..=0x53f if is_slot(offset) && capability.has(Feature::ExtendedLvtAvicAccess) => {
            extended_lvt
        }
        0x400..=0x42f | 0x480..=0xfff => Handling::Fault,
        _ if knobs.unnamed_offsets_are_memory => Handling::Memory,
        _ => Handling::Fault,
    }
}

fn is_slot(offset: u32) -> bool {
    offset.is_multiple_of(0x10)
}
