//! Accesses to the APIC's model-specific registers.

use crate::access::{Access, reserved_in_x2apic};
use crate::base::{IA32_APIC_BASE, Mode};
use crate::effect::Effect;
use crate::fault::Fault;
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::register::Register;
use crate::timer::IA32_TSC_DEADLINE;

/// Whether MSR `msr` belongs to the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC
/// window 800 to 8FF, whatever the mode.
#[must_use]
pub const fn is_apic_msr(msr: u32) -> bool {
    matches!(msr, IA32_APIC_BASE | IA32_TSC_DEADLINE | 0x800..=0x8FF)
}

impl<I: Inbox> LocalApic<'_, I> {
    /// A guest's RDMSR of `msr`.
    ///
    /// # Errors
    /// #GP for an MSR that does not exist in the APIC's mode, for a write-only one, and for an
    /// MSR that is not the APIC's ([`is_apic_msr`]). SDM Vol. 3A 10.12.1.2; APM Vol. 2 16.11.
    #[inline(always)]
    pub fn read_msr(&mut self, msr: u32, now: u64) -> Result<u64, Fault> {
        let index = msr.wrapping_sub(0x800);
        let usual = self.slot.base().in_x2apic_mode() && !self.timer.due(now);
        if usual && self.plain.in_msrs(index) {
            return Ok(u64::from(self.slot.page().load((index << 4) as u16)));
        }
        // Taken apart, so that the short way's caller need not ask which it was.
        match self.read_msr_unusual(msr, now) {
            Ok(value) => Ok(value),
            Err(fault) => Err(fault),
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn read_msr_unusual(&mut self, msr: u32, now: u64) -> Result<u64, Fault> {
        match msr {
            IA32_APIC_BASE => Ok(self.slot.base().bits()),
            IA32_TSC_DEADLINE if self.slot.profile().tsc_deadline() => {
                self.pass_time(now);
                Ok(self.timer.deadline())
            }
            _ => {
                let register = self.x2apic_register(msr, Access::readable)?;
                if register == Register::IcrLow {
                    return Ok(self.slot.icr().bits());
                }
                Ok(u64::from(self.read_register(register, now)))
            }
        }
    }

    /// A guest's WRMSR of `value` to `msr`.
    ///
    /// # Errors
    /// #GP, with nothing changed, for an MSR that does not exist in the APIC's mode, for a
    /// read-only one, for a reserved bit, and for an MSR that is not the APIC's
    /// ([`is_apic_msr`]). SDM Vol. 3A 10.12.1.2 and Table 10-6; APM Vol. 2 16.11.
    #[inline(always)]
    pub fn write_msr(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, Fault> {
        // The registers of the interrupt path, which every profile has and lets a guest write.
        if self.slot.base().in_x2apic_mode() && !self.timer.due(now) {
            match msr {
                0x808 if value <= 0xFF => return Ok(self.write_tpr(value as u32)),
                0x80B if value == 0 => return Ok(self.end_of_interrupt()),
                0x830 if self.legal(Register::IcrLow, value) => return Ok(self.write_icr(value)),
                0x83F if value <= 0xFF => return Ok(self.write_self_ipi(value as u32)),
                _ => {}
            }
        }
        self.write_msr_unusual(msr, value, now).map(Effect::in_registers)
    }

    #[inline(never)]
    pub(crate) fn write_msr_unusual(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, Fault> {
        match msr {
            IA32_APIC_BASE => {
                self.pass_time(now);
                self.write_apic_base(value)
            }
            IA32_TSC_DEADLINE if self.slot.profile().tsc_deadline() => {
                Ok(self.write_tsc_deadline(value, now))
            }
            _ => {
                let register = self.x2apic_register(msr, Access::writable)?;
                if !self.legal(register, value) {
                    return Err(Fault::GeneralProtection);
                }
                self.pass_time(now);
                if register == Register::IcrLow {
                    return Ok(self.write_icr(value));
                }
                self.store_guest(register, value as u32);
                Ok(self.after_write(register, now))
            }
        }
    }

    /// Whether `value` leaves the reserved bits of `register` zero.
    #[inline]
    fn legal(&self, register: Register, value: u64) -> bool {
        value & reserved_in_x2apic(register, self.slot.profile()) == 0
    }

    /// A guest's MOV from CR8: TPR bits 7:4 (SDM Vol. 3A 10.8.6).
    #[must_use]
    pub fn read_cr8(&self) -> u64 {
        u64::from(self.slot.page().read(Register::Tpr) >> 4 & 0xF)
    }

    /// A guest's MOV to CR8: TPR bits 7:4 take the value, bits 3:0 become zero.
    ///
    /// # Errors
    /// #GP if bits 63:4 are not zero.
    pub fn write_cr8(&mut self, value: u64, now: u64) -> Result<Effect, Fault> {
        if value > 0xF {
            return Err(Fault::GeneralProtection);
        }
        self.store_guest(Register::Tpr, (value as u32) << 4);
        Ok(self.after_write(Register::Tpr, now))
    }

    /// Ignored where there is no APIC, and outside TSC-deadline mode (SDM Vol. 3A 10.5.4.1).
    fn write_tsc_deadline(&mut self, value: u64, now: u64) -> Effect {
        self.pass_time(now);
        if !self.slot.present() {
            return Effect::None;
        }
        self.timer.set_deadline(value, self.timer_settings().mode);
        self.pass_time(now);
        Effect::TimerChanged
    }

    fn x2apic_register(&self, msr: u32, allowed: fn(Access) -> bool) -> Result<Register, Fault> {
        let register = Register::from_msr(msr).ok_or(Fault::GeneralProtection)?;
        let access = match self.slot.mode() {
            Mode::X2Apic => Access::of(register, Mode::X2Apic, self.slot.profile()),
            Mode::Disabled | Mode::XApic => Access::Absent,
        };
        if allowed(access) { Ok(register) } else { Err(Fault::GeneralProtection) }
    }
}
