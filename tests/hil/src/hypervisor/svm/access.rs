//! Guest accesses that exit before they are done: the register window, MSRs, CR8.

use vlapic_core::{Backend, is_apic_msr};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::Loop;
use crate::guest::apic::DEFAULT_BASE;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::access::width;
use crate::instruction::mov::Direction;
use crate::svm::Exit;
use crate::svm::interrupt::Event as Injected;

impl Loop<'_> {
    /// The register window is not mapped.
    pub(super) fn nested_page_fault(&mut self, exit: &Exit) -> Result<(), HypervisorError> {
        let address = exit.guest_physical();
        if address & !0xfff != DEFAULT_BASE {
            return Err(HypervisorError::NoDevice(address));
        }
        let offset = address as u16 & 0xfff;
        let access = self.current.decode_access().map_err(|_| HypervisorError::NotDecoded)?;
        let (width, now) = (width(access.width), TscClock.now());
        match access.direction {
            Direction::Store { value } => {
                let effect = self.driver.apic_mut().write_mmio(offset, width, value, now);
                self.current.complete_access(&access, 0);
                self.carry_out(effect);
            }
            Direction::Load { .. } => {
                let value = self.driver.apic_mut().read_mmio(offset, width, now);
                self.current.complete_access(&access, value);
            }
        }
        Ok(())
    }

    pub(super) fn read_msr(&mut self, exit: &Exit) -> Result<(), HypervisorError> {
        let [_, register, ..] = *self.current.general();
        let register = register as u32;
        let value = if is_apic_msr(register) {
            self.driver.apic_mut().read_msr(register, TscClock.now()).ok()
        } else {
            None
        };
        let Some(value) = value else {
            self.current.inject(Injected::GeneralProtection);
            return Ok(());
        };
        let [rax, _, rdx, ..] = self.current.general();
        *rax = value & 0xffff_ffff;
        *rdx = value >> 32;
        Ok(self.current.skip_instruction(exit)?)
    }

    pub(super) fn write_msr(&mut self, exit: &Exit) -> Result<(), HypervisorError> {
        let [low, register, high, ..] = *self.current.general();
        let register = register as u32;
        let value = high << 32 | low & 0xffff_ffff;
        let result = if is_apic_msr(register) {
            self.driver.apic_mut().write_msr(register, value, TscClock.now()).ok()
        } else {
            None
        };
        let Some(effect) = result else {
            self.current.inject(Injected::GeneralProtection);
            return Ok(());
        };
        self.current.skip_instruction(exit)?;
        self.carry_out(effect);
        Ok(())
    }

    pub(super) fn read_cr8(&mut self, exit: &Exit) -> Result<(), HypervisorError> {
        let operand = self.current.cr8_operand()?;
        self.current.general()[operand] = self.driver.apic().read_cr8();
        Ok(self.current.skip_instruction(exit)?)
    }

    pub(super) fn write_cr8(&mut self, exit: &Exit) -> Result<(), HypervisorError> {
        let operand = self.current.cr8_operand()?;
        let value = self.current.general()[operand];
        match self.driver.apic_mut().write_cr8(value, TscClock.now()) {
            Ok(effect) => {
                self.current.skip_instruction(exit)?;
                self.carry_out(effect);
            }
            Err(_) => self.current.inject(Injected::GeneralProtection),
        }
        Ok(())
    }
}
