//! Accesses to the register window in memory.

use crate::access::{Access, stored_bits};
use crate::base::Mode;
use crate::effect::Effect;
use crate::esr::Errors;
use crate::icr::Icr;
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::profile::Vendor;
use crate::register::Register;

/// How many bytes an access touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes, the one width the manuals define.
    Dword,
    /// 8 bytes.
    Qword,
}

impl Width {
    /// The width of an access of `bytes` bytes; `None` unless they are 1, 2, 4 or 8.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Word,
            4 => Self::Dword,
            8 => Self::Qword,
            _ => return None,
        })
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All bits that an access of this width carries.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xFF,
            Self::Word => 0xFFFF,
            Self::Dword => 0xFFFF_FFFF,
            Self::Qword => u64::MAX,
        }
    }
}

impl<I: Inbox> LocalApic<'_, I> {
    /// What a guest's read of `width` at `offset` (bytes into the window, bits 15:12 ignored)
    /// returns.
    ///
    /// The manuals define aligned 4-byte accesses. Smaller reads that stay inside the first four
    /// bytes of a slot get that part of the register; all others get zero and do nothing.
    /// Reserved registers read zero and set ESR bit 7. If the APIC is not in xAPIC mode there is
    /// no window and all bits read as one (SDM Vol. 3A 10.4.1, 10.12.2).
    #[inline(always)]
    pub fn read_mmio(&mut self, offset: u16, width: Width, now: u64) -> u64 {
        let usual = width == Width::Dword && self.slot.base().in_xapic_mode();
        if usual && !self.timer.due(now) && self.plain.in_memory(offset) {
            return u64::from(self.slot.page().load(offset));
        }
        self.read_mmio_unusual(offset, width, now)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn read_mmio_unusual(&mut self, offset: u16, width: Width, now: u64) -> u64 {
        if self.slot.mode() != Mode::XApic {
            return width.mask();
        }
        let within = offset & 0xF;
        if within + width.bytes() > 4 {
            return 0;
        }
        let value = match self.readable_in_memory(offset & 0xFF0) {
            Some(register) => self.read_register(register, now),
            None => 0,
        };
        u64::from(value) >> (8 * within) & width.mask()
    }

    /// A guest's write of `value` of `width` at `offset` (bytes into the window, bits 15:12
    /// ignored).
    ///
    /// Only aligned 4-byte writes count; others are ignored, as are writes to read-only
    /// registers. Reserved registers set ESR bit 7. If the APIC is not in xAPIC mode there is no
    /// window and the write goes nowhere.
    #[inline(always)]
    pub fn write_mmio(&mut self, offset: u16, width: Width, value: u64, now: u64) -> Effect {
        let usual = width == Width::Dword && offset & 0xF == 0 && self.slot.base().in_xapic_mode();
        // The registers of the interrupt path, which every profile has and lets a guest write.
        if usual && !self.timer.due(now) {
            match offset & 0xFF0 {
                0x080 => return self.write_tpr(value as u32),
                0x0B0 => return self.end_of_interrupt(),
                0x300 => {
                    let low = value as u32 & stored_bits(Register::IcrLow, self.slot.profile());
                    self.store_guest(Register::IcrLow, low);
                    let high = self.slot.page().read(Register::IcrHigh);
                    return self.send(Icr::from_halves(low, high), Mode::XApic);
                }
                0x310 => {
                    let high = value as u32 & stored_bits(Register::IcrHigh, self.slot.profile());
                    self.store_guest(Register::IcrHigh, high);
                    return Effect::None;
                }
                _ => {}
            }
        }
        self.write_mmio_unusual(offset, width, value, now).in_registers()
    }

    #[inline(never)]
    pub(crate) fn write_mmio_unusual(
        &mut self,
        offset: u16,
        width: Width,
        value: u64,
        now: u64,
    ) -> Effect {
        if self.slot.mode() != Mode::XApic || width != Width::Dword || offset & 0xF != 0 {
            return Effect::None;
        }
        let Some(register) = Register::at(offset & 0xFF0) else {
            return self.illegal_register();
        };
        match Access::of(register, Mode::XApic, self.slot.profile()) {
            Access::Absent => self.illegal_register(),
            Access::ReadOnly => Effect::None,
            Access::WriteOnly | Access::ReadWrite => {
                self.pass_time(now);
                self.store_guest(register, value as u32);
                self.after_write(register, now)
            }
        }
    }

    /// The value a guest sees in `register`, access rights aside.
    #[must_use]
    pub(crate) fn read_register(&mut self, register: Register, now: u64) -> u32 {
        self.pass_time(now);
        let page = self.slot.page();
        match register {
            Register::Ppr => u32::from(self.slot.processor_priority()),
            Register::Apr => match self.slot.profile().vendor() {
                Vendor::Intel => 0,
                Vendor::Amd => u32::from(self.slot.arbitration_priority()),
            },
            Register::RemoteRead => 0,
            Register::CurrentCount => self.timer.current_count(now, self.timer_settings()),
            Register::Lvt(entry) => self.slot.lvt(entry).bits(),
            Register::Isr(bank) => page.isr().bank(usize::from(bank.index())),
            Register::Irr(bank) => page.irr().bank(usize::from(bank.index())),
            Register::Tmr(bank) => page.tmr().bank(usize::from(bank.index())),
            _ => page.read(register),
        }
    }

    /// Stores what the guest wrote; `after_write` puts right what it may not change.
    #[inline]
    pub(crate) fn store_guest(&self, register: Register, value: u32) {
        self.slot.page().write(register, value);
    }

    fn readable_in_memory(&mut self, slot: u16) -> Option<Register> {
        let register = Register::at(slot);
        let access =
            register.map(|register| Access::of(register, Mode::XApic, self.slot.profile()));
        match access {
            None | Some(Access::Absent) => {
                let _ = self.illegal_register();
                None
            }
            Some(Access::WriteOnly) => None,
            Some(Access::ReadOnly | Access::ReadWrite) => register,
        }
    }

    fn illegal_register(&mut self) -> Effect {
        // The owner is here and will look: nobody has to be told.
        let _ = self.slot.record_error(Errors::ILLEGAL_REGISTER);
        Effect::None
    }
}
