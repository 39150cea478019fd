//! Per-CPU descriptor tables and stacks, and which CPU this is.

use core::sync::atomic::{AtomicU64, Ordering};

use x86::bits64::task::TaskStateSegment;
use x86::dtables::{self, DescriptorTablePointer};
use x86::segmentation::SegmentSelector;

use super::memory::{self, FRAME_SIZE};
use super::smp::MAX_CPUS;
use crate::boot::GDT_TSS_BASE;

/// Stack of ordinary code, in frames.
pub(super) const STACK_FRAMES: usize = 16;
const HANDLER_STACK_FRAMES: usize = 4;

/// Interrupt-stack-table slots (SDM Vol. 3A 6.14.5): interrupts must not land on the stack they interrupt, because the
/// precompiled `core` keeps data in a red zone below it.
pub(super) const IST_INTERRUPT: u8 = 1;
pub(super) const IST_EXCEPTION: u8 = 2;
pub(super) const IST_NMI: u8 = 3;

const FIRST_TSS: usize = (GDT_TSS_BASE / 8) as usize;

/// One table for all CPUs: the boot GDT's four segments, then a task-state segment of two entries for each CPU.
static GDT: [AtomicU64; FIRST_TSS + 2 * MAX_CPUS] =
    [const { AtomicU64::new(0) }; FIRST_TSS + 2 * MAX_CPUS];

/// Index of this CPU: 0 started the machine, the others are numbered as they arrived.
pub(crate) fn this_cpu() -> usize {
    // The task register names the CPU's own descriptor, survives VM exits (SDM Vol. 3C 28.5.2), and needs no memory.
    // SAFETY: STR has no side effects.
    let selector = unsafe { x86::task::tr() }.bits();
    usize::from(selector.saturating_sub(GDT_TSS_BASE) / 16)
}

/// Fills the part of the table that all CPUs share. The first CPU calls this once, before [`load`].
pub(super) fn initialise_gdt() {
    for (entry, descriptor) in
        GDT.iter().zip([0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_9b00_0000_ffff])
    {
        entry.store(descriptor, Ordering::Relaxed);
    }
}

/// Gives this CPU its task-state segment and handler stacks.
pub(super) fn load(cpu: usize) {
    let mut task = TaskStateSegment::new();
    for slot in [IST_INTERRUPT, IST_EXCEPTION, IST_NMI] {
        task.set_ist(usize::from(slot) - 1, stack_top(HANDLER_STACK_FRAMES));
    }
    task.iomap_base = size_of::<TaskStateSegment>() as u16;
    let base = core::ptr::from_mut(memory::place(task)).expose_provenance() as u64;

    // An available 64-bit TSS, present (SDM Vol. 3A 7.2.3).
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    GDT[FIRST_TSS + 2 * cpu].store(low, Ordering::Relaxed);
    GDT[FIRST_TSS + 2 * cpu + 1].store(base >> 32, Ordering::Relaxed);

    let pointer = DescriptorTablePointer::new_from_slice(&GDT);
    // SAFETY: the table is static, and has the boot GDT's segments at the same selectors, so what is loaded stays right.
    unsafe { dtables::lgdt(&pointer) };
    // SAFETY: the descriptor written above is an available TSS that lives for ever and that only this CPU uses.
    unsafe { x86::task::load_tr(SegmentSelector::from_raw(GDT_TSS_BASE + 16 * cpu as u16)) };
}

/// A new stack's top.
pub(super) fn stack_top(frames: usize) -> u64 {
    memory::alloc_frames(frames)[0].physical_address() + (frames * FRAME_SIZE) as u64
}
