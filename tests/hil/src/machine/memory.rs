//! Page frames, handed out once and never taken back.

use core::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const FRAME_SIZE: usize = 4096;

/// 6 MiB: the image then ends below 8 MiB, where the smallest machine still has memory.
const FRAMES: usize = 1536;

/// A page frame; its address is its physical address.
#[repr(C, align(4096))]
pub(crate) struct Frame(pub(crate) [u8; FRAME_SIZE]);

impl Frame {
    pub(crate) fn physical_address(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }
}

unsafe extern "C" {
    static frame_pool: [Frame; FRAMES];
}

// A section of its own behind .bss: what loaders leave in it does not matter, so none has to clear it.
core::arch::global_asm!(
    ".section .frames, \"aw\", @nobits",
    ".balign 4096",
    ".global frame_pool",
    "frame_pool: .fill {bytes}, 1, 0",
    ".text",
    bytes = const FRAMES * FRAME_SIZE,
);

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A zeroed frame.
pub(crate) fn alloc_frame() -> &'static mut Frame {
    &mut alloc_frames(1)[0]
}

/// Zeroed frames, one after the other. Ends the run if there are not so many left.
pub(crate) fn alloc_frames(count: usize) -> &'static mut [Frame] {
    // Relaxed: the addition alone makes the ranges disjoint.
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    assert!(first + count <= FRAMES, "out of page frames");
    let start = (&raw const frame_pool).cast::<Frame>().cast_mut().wrapping_add(first);
    // SAFETY: the range lies in the pool, and nobody else has or gets it. Loaders give us this memory.
    unsafe { start.write_bytes(0, count) };
    // SAFETY: as above; all zeroes is a valid frame.
    unsafe { core::slice::from_raw_parts_mut(start, count) }
}

/// Puts a value into frames of its own: page-aligned, at a known physical address.
pub(crate) fn place<T>(value: T) -> &'static mut T {
    const { assert!(align_of::<T>() <= FRAME_SIZE) };
    let start = alloc_frames(size_of::<T>().div_ceil(FRAME_SIZE).max(1)).as_mut_ptr().cast::<T>();
    // SAFETY: the frames are ours, large enough, and aligned to more than `T` asks for.
    unsafe { start.write(value) };
    // SAFETY: written just now, and nobody else has the address.
    unsafe { &mut *start }
}
