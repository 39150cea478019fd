//! Guest accesses that exit before they are done: the register window, MSRs, CR8.

use core::convert::Infallible;

use avic::Exit;
use vlapic_core::{ApicBase, Backend, is_apic_msr};

use crate::injection;
use crate::machine::{Access, Cpu, Host};
use crate::turn::{Error, Loop};

/// EXITINFO1 of a nested page fault: the page was present, so its permissions were violated.
const PRESENT: u64 = 1 << 0;

impl<'s, H, C, B> Loop<'s, '_, H, C, B>
where
    H: Host,
    C: Cpu,
    B: Backend<'s, C::Vmcb, Exit = Exit, Error = Infallible>,
{
    /// An access that nested paging has stopped. That of the register window is mapped for AVIC, or is emulated.
    pub(crate) fn nested_page_fault(&mut self, exit: &Exit) -> Result<(), Error<C, H>> {
        let address = exit.info_2;
        if address & !0xfff != ApicBase::DEFAULT_ADDRESS {
            return Err(Error::NoDevice(address));
        }
        if let Some(window) = self.window
            && exit.info_1 & PRESENT == 0
            && !window.is_mapped()
            && window.map()
        {
            // The instruction is executed again.
            self.host.map_window();
            return Ok(());
        }
        self.register_window(address as u16 & 0xfff)
    }

    /// An access to the register window at `offset` is done for the guest.
    pub(crate) fn register_window(&mut self, offset: u16) -> Result<(), Error<C, H>> {
        let (access, instruction) = self.cpu.decode().ok_or(Error::NotDecoded)?;
        let now = self.host.now();
        match access {
            Access::Store(width, value) => {
                let effect = self.driver.apic_mut().write_mmio(offset, width, value, now);
                self.cpu.complete(&instruction, 0);
                self.carry_out(effect);
            }
            Access::Load(width) => {
                let value = self.driver.apic_mut().read_mmio(offset, width, now);
                self.cpu.complete(&instruction, value);
            }
        }
        Ok(())
    }

    /// RDMSR or WRMSR of the register in ECX.
    pub(crate) fn msr(&mut self, write: bool) -> Result<(), Error<C, H>> {
        let [low, register, high, ..] = *self.cpu.registers();
        let (register, now) = (register as u32, self.host.now());
        if !is_apic_msr(register) {
            injection::inject_general_protection(self.cpu.vmcb());
            return Ok(());
        }
        let apic = self.driver.apic_mut();
        if write {
            match apic.write_msr(register, high << 32 | low & 0xffff_ffff, now) {
                Ok(effect) => {
                    self.cpu.skip_instruction().map_err(Error::Cpu)?;
                    self.carry_out(effect);
                }
                Err(_) => injection::inject_general_protection(self.cpu.vmcb()),
            }
        } else {
            match apic.read_msr(register, now) {
                Ok(value) => {
                    let [rax, _, rdx, ..] = self.cpu.registers();
                    (*rax, *rdx) = (value & 0xffff_ffff, value >> 32);
                    self.cpu.skip_instruction().map_err(Error::Cpu)?;
                }
                Err(_) => injection::inject_general_protection(self.cpu.vmcb()),
            }
        }
        Ok(())
    }

    pub(crate) fn read_cr8(&mut self) -> Result<(), Error<C, H>> {
        let operand = self.cpu.cr8_operand().map_err(Error::Cpu)?;
        let value = self.driver.apic().read_cr8();
        if let Some(register) = self.cpu.registers().get_mut(operand) {
            *register = value;
        }
        self.cpu.skip_instruction().map_err(Error::Cpu)
    }

    pub(crate) fn write_cr8(&mut self) -> Result<(), Error<C, H>> {
        let operand = self.cpu.cr8_operand().map_err(Error::Cpu)?;
        let value = self.cpu.registers().get(operand).copied().unwrap_or(0);
        match self.driver.apic_mut().write_cr8(value, self.host.now()) {
            Ok(effect) => {
                self.cpu.skip_instruction().map_err(Error::Cpu)?;
                self.carry_out(effect);
            }
            Err(_) => injection::inject_general_protection(self.cpu.vmcb()),
        }
        Ok(())
    }
}
