//! The memory of the one VM that there is at a time.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use apicv::Posting;
use avic::{Backing, Shared, Window};
use vlapic_core::{DirectInbox, Slot};

use super::VirtualMachine;
use crate::guest::MAX_VCPUS;

type Slots<I> = [Slot<'static, I>; MAX_VCPUS];

struct Storage<T>(UnsafeCell<Option<T>>);

// SAFETY: `replace` is called by one CPU at a time, the one that a case is on, and only while no vCPU runs; everybody else
// has shared references, and what is stored is made of atomics and locks.
unsafe impl<T> Sync for Storage<T> {}

static SLOTS: Storage<Slots<Posting<'static>>> = Storage(UnsafeCell::new(None));
static DIRECT_SLOTS: Storage<Slots<DirectInbox>> = Storage(UnsafeCell::new(None));
static BACKED_SLOTS: Storage<Slots<Backing>> = Storage(UnsafeCell::new(None));
static SHARED: Storage<Shared<'static>> = Storage(UnsafeCell::new(None));
static WINDOW: Storage<Window> = Storage(UnsafeCell::new(None));
static MACHINE: Storage<VirtualMachine> = Storage(UnsafeCell::new(None));
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// The slots of the next VM, if it runs under `apicv`.
pub(super) fn slots(
    slot: impl FnMut(usize) -> Slot<'static, Posting<'static>>,
) -> &'static Slots<Posting<'static>> {
    SLOTS.replace(core::array::from_fn(slot))
}

/// The slots of the next VM, if it is plainly emulated.
pub(super) fn direct_slots(
    slot: impl FnMut(usize) -> Slot<'static, DirectInbox>,
) -> &'static Slots<DirectInbox> {
    DIRECT_SLOTS.replace(core::array::from_fn(slot))
}

/// The slots of the next VM, if it runs under `avic`.
pub(super) fn backed_slots(
    slot: impl FnMut(usize) -> Slot<'static, Backing>,
) -> &'static Slots<Backing> {
    BACKED_SLOTS.replace(core::array::from_fn(slot))
}

/// The tables of the next VM, if it runs under `avic`, and its register window.
pub(super) fn shared(shared: Shared<'static>) -> (&'static Shared<'static>, &'static Window) {
    (SHARED.replace(shared), WINDOW.replace(Window::new()))
}

/// Ends the last VM: what it still holds is dropped before anything of it is replaced.
pub(super) fn end_last() {
    MACHINE.clear();
}

/// The next VM. The last one's memory is given back.
pub(super) fn machine(machine: VirtualMachine) -> &'static VirtualMachine {
    MACHINE.replace(machine)
}

impl<T> Storage<T> {
    fn replace(&'static self, value: T) -> &'static T {
        assert!(RUNNING.load(Ordering::Acquire) == 0, "a vCPU of the last VM still runs");
        // SAFETY: no vCPU runs, and cases keep no reference to a VM beyond their end, so nobody else has one.
        let place = unsafe { &mut *self.0.get() };
        place.insert(value)
    }

    fn clear(&self) {
        assert!(RUNNING.load(Ordering::Acquire) == 0, "a vCPU of the last VM still runs");
        // SAFETY: as in `replace`.
        let place = unsafe { &mut *self.0.get() };
        *place = None;
    }
}

/// A vCPU is in its loop.
pub(super) struct Running(());

impl Running {
    pub(super) fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `replace`.
        RUNNING.fetch_sub(1, Ordering::Release);
    }
}
