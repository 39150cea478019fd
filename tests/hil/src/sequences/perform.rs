//! The guest's operations, each one instruction. Runs in guest mode.

use core::arch::asm;

use vlapic_sequences::Operation;

use crate::guest::apic::DEFAULT_BASE;
use crate::guest::{Fault, cpu};

/// Carries out one operation of a guest, and `host` for what is its host's; what it reads, or 0.
pub(super) fn perform<H>(operation: Operation<H>, host: impl FnOnce(H)) -> Result<u64, Fault> {
    match operation {
        Operation::Load(offset, width) => load(DEFAULT_BASE + u64::from(offset), width),
        Operation::Store(offset, width, value) => {
            store(DEFAULT_BASE + u64::from(offset), width, value)
        }
        Operation::ReadMsr(msr) => cpu::read_msr(msr),
        Operation::WriteMsr(msr, value) => cpu::write_msr(msr, value).map(|()| 0),
        Operation::ReadCr8 => read_cr8(),
        Operation::WriteCr8(value) => cpu::write_cr8(value).map(|()| 0),
        Operation::Interrupts(true) => {
            cpu::interrupts_on();
            Ok(0)
        }
        Operation::Interrupts(false) => {
            cpu::interrupts_off();
            Ok(0)
        }
        Operation::Host(operation) => {
            host(operation);
            Ok(0)
        }
    }
}

/// One instruction that the host may skip: it goes on behind it, where GS:8 says.
macro_rules! skippable {
    ($($instruction:literal),+; $($operands:tt)*) => {
        // SAFETY: guest code at CPL 0; GS:8 is the context's fixup. The instruction accesses the APIC window, where no Rust
        // object is, or CR8, which only delays interrupts.
        unsafe {
            asm!(
                "lea {resume}, [rip + 2f]",
                "mov gs:[8], {resume}",
                $($instruction,)+
                "2:",
                resume = out(reg) _,
                $($operands)*
                options(nostack),
            );
        }
    };
}

fn load(address: u64, width: u8) -> Result<u64, Fault> {
    let mut value = 0_u64;
    match width {
        1 => {
            skippable!("mov {value:l}, [{address}]"; value = inout(reg) value, address = in(reg) address,)
        }
        2 => {
            skippable!("mov {value:x}, [{address}]"; value = inout(reg) value, address = in(reg) address,)
        }
        4 => {
            skippable!("mov {value:e}, [{address}]"; value = inout(reg) value, address = in(reg) address,)
        }
        _ => {
            skippable!("mov {value}, [{address}]"; value = inout(reg) value, address = in(reg) address,)
        }
    }
    cpu::settle().map(|()| value)
}

fn store(address: u64, width: u8, value: u64) -> Result<u64, Fault> {
    match width {
        1 => {
            skippable!("mov [{address}], {value:l}"; value = in(reg) value, address = in(reg) address,)
        }
        2 => {
            skippable!("mov [{address}], {value:x}"; value = in(reg) value, address = in(reg) address,)
        }
        4 => {
            skippable!("mov [{address}], {value:e}"; value = in(reg) value, address = in(reg) address,)
        }
        _ => {
            skippable!("mov [{address}], {value}"; value = in(reg) value, address = in(reg) address,)
        }
    }
    cpu::settle().map(|()| 0)
}

fn read_cr8() -> Result<u64, Fault> {
    let mut value = 0_u64;
    skippable!("mov {value}, cr8"; value = inout(reg) value,);
    cpu::settle().map(|()| value)
}
