//! The guest's side: it carries out the operations of each batch and records what comes of them.

use core::arch::asm;
use core::sync::atomic::Ordering;

use vlapic_sequences::Digest;
use vlapic_sequences::vmx::{Operation, Record, STEPS};

use super::shared::{self, KEEP_PAGES, PAGE, RESULTS};
use crate::guest::apic::DEFAULT_BASE;
use crate::guest::{Context, Eoi, Fault, cpu, hypercall};

/// Asks for the next batch and gives the digest of the one before: 0 is the end.
pub(super) const NEXT_BATCH: u64 = hypercall::FIRST_FREE;
/// The host's part of the step in the first argument.
pub(super) const HOST_STEP: u64 = hypercall::FIRST_FREE + 1;

/// Does batches until there are no more.
pub(super) extern "C" fn program(context: &'static Context, _: u64) -> u64 {
    for vector in 16..=255 {
        context.set_handling(vector, Eoi::Never, Some(|_, vector| shared::note_taken(vector)));
    }
    let mut digest = 0;
    while hypercall::call(NEXT_BATCH, digest, 0) != 0 {
        digest = batch();
    }
    0
}

fn batch() -> u64 {
    let mut digest = Digest::new();
    for step in 0..STEPS {
        let Some(operation) = shared::operation(step) else { break };
        shared::clear();
        let result = perform(operation, step);
        let record = Record {
            value: result.unwrap_or(0),
            fault: result.is_err(),
            taken: shared::taken(),
            exits: shared::exits(),
            page: Record::page_digest(|offset| PAGE.load(offset)),
        };
        record.add_to(&mut digest);
        keep(step, record);
    }
    cpu::interrupts_off();
    digest.value()
}

/// For a host that is asked for each step.
fn keep(step: usize, record: Record) {
    let mut results = RESULTS.lock();
    if let Some(slot) = results.records.get_mut(step) {
        *slot = Some(record);
    }
    if KEEP_PAGES.load(Ordering::Relaxed)
        && let Some(page) = results.pages.get_mut(step)
    {
        for (offset, word) in (0..).step_by(4).zip(page) {
            *word = PAGE.load(offset);
        }
    }
}

/// One operation; what it reads, or 0.
fn perform(operation: Operation, step: usize) -> Result<u64, Fault> {
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
        Operation::Host(_) => {
            hypercall::call(HOST_STEP, step as u64, 0);
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
