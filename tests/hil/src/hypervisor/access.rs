//! Guest accesses that exit before they are done: the register window, MSRs, CR8.

use vlapic_core::{Width, is_apic_msr};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::vcpu::Loop;
use super::{HypervisorError, meter};
use crate::guest::apic::DEFAULT_BASE;
use crate::instruction::mov::{self, Direction};
use crate::vmx;
use crate::vmx::interrupt::Event as Injection;

impl Loop<'_> {
    /// An access to the register window at `offset` is to be done for the guest.
    pub(super) fn register_window(&mut self, offset: u16) -> Result<(), HypervisorError> {
        let access = self.current.decode_access()?.map_err(|_| HypervisorError::NotDecoded)?;
        let now = TscClock.now();
        let width = width(access.width);
        match access.direction {
            Direction::Store { value } => {
                let apic = self.driver.apic_mut();
                let effect = meter::measured(|| apic.write_mmio(offset, width, value, now));
                self.current.complete_access(&access, 0)?;
                self.carry_out(effect)
            }
            Direction::Load { .. } => {
                let apic = self.driver.apic_mut();
                let value = meter::measured(|| apic.read_mmio(offset, width, now));
                self.current.complete_access(&access, value)?;
                Ok(())
            }
        }
    }

    /// Without an APIC-access page the register window is simply not mapped.
    pub(super) fn ept_violation(&mut self, exit: &vmx::Exit) -> Result<(), HypervisorError> {
        if exit.guest_physical & !0xfff != DEFAULT_BASE {
            return Err(HypervisorError::NoDevice(exit.guest_physical));
        }
        self.register_window(exit.guest_physical as u16 & 0xfff)
    }

    pub(super) fn read_msr(&mut self, exit: &vmx::Exit) -> Result<(), HypervisorError> {
        let [_, register, ..] = *self.current.general();
        let register = register as u32;
        let value = if is_apic_msr(register) {
            let (apic, now) = (self.driver.apic_mut(), TscClock.now());
            meter::measured(|| apic.read_msr(register, now)).ok()
        } else {
            None
        };
        let Some(value) = value else {
            return self.general_protection();
        };
        let [rax, _, rdx, ..] = self.current.general();
        *rax = value & 0xffff_ffff;
        *rdx = value >> 32;
        Ok(self.current.skip_instruction(exit)?)
    }

    pub(super) fn write_msr(&mut self, exit: &vmx::Exit) -> Result<(), HypervisorError> {
        let [low, register, high, ..] = *self.current.general();
        let register = register as u32;
        if !is_apic_msr(register) {
            return self.general_protection();
        }
        let value = high << 32 | low & 0xffff_ffff;
        let (apic, now) = (self.driver.apic_mut(), TscClock.now());
        match meter::measured(|| apic.write_msr(register, value, now)) {
            Ok(effect) => {
                self.current.skip_instruction(exit)?;
                self.carry_out(effect)
            }
            Err(_) => self.general_protection(),
        }
    }

    /// MOV to and from CR8, where there is no TPR shadow (SDM Vol. 3C Table 27-3).
    pub(super) fn control_register(&mut self, exit: &vmx::Exit) -> Result<(), HypervisorError> {
        let register = (exit.qualification >> 8 & 0xf) as usize;
        let result = match (exit.qualification & 0xf, exit.qualification >> 4 & 3) {
            (8, 0) => {
                let value = self.current.general()[register];
                self.driver.apic_mut().write_cr8(value, TscClock.now())
            }
            (8, 1) => {
                let value = self.driver.apic().read_cr8();
                self.current.general()[register] = value;
                Ok(vlapic_core::Effect::None)
            }
            _ => {
                let (reason, qualification) = (exit.reason, exit.qualification);
                return Err(HypervisorError::UnknownExit { reason, qualification });
            }
        };
        match result {
            Ok(effect) => {
                self.current.skip_instruction(exit)?;
                self.carry_out(effect)
            }
            Err(_) => self.general_protection(),
        }
    }

    fn general_protection(&mut self) -> Result<(), HypervisorError> {
        Ok(self.current.inject(Injection::GeneralProtection)?)
    }
}

/// The decoder's width as the APIC has it.
pub(super) fn width(width: mov::Width) -> Width {
    match width {
        mov::Width::Byte => Width::Byte,
        mov::Width::Word => Width::Word,
        mov::Width::Dword => Width::Dword,
        mov::Width::Qword => Width::Qword,
    }
}
