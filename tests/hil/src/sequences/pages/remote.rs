//! Another CPU that posts to the guest while it runs.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use spin::Mutex;
use vlapic_core::Trigger;

use crate::guest::cpu;
use crate::hypervisor::VirtualMachine;
use crate::machine::smp;

static MACHINE: Mutex<Option<&'static VirtualMachine>> = Mutex::new(None);
static THERE: AtomicBool = AtomicBool::new(false);
/// What the guest asks for: a vector, bit 8 if level-triggered, bit 9 always. 0 when it is done.
static ASKED: AtomicU32 = AtomicU32::new(0);

const LEVEL: u32 = 1 << 8;
const ASKS: u32 = 1 << 9;

/// Has CPU 1 post, if there is one.
pub(super) fn begin(machine: &'static VirtualMachine) {
    if smp::cpu_count() < 2 {
        return;
    }
    *MACHINE.lock() = Some(machine);
    ASKED.store(0, Ordering::SeqCst);
    THERE.store(true, Ordering::SeqCst);
    smp::run_on(1, serve);
}

/// Lets CPU 1 go.
pub(super) fn end() {
    if THERE.swap(false, Ordering::SeqCst) {
        smp::wait_idle(1);
    }
}

/// Whether another CPU posts.
pub(super) fn is_there() -> bool {
    THERE.load(Ordering::Relaxed)
}

/// The guest has the other CPU post, and waits until it has and the notification has come.
pub(super) fn ask(vector: u8, level: bool) {
    const LONG: u64 = 1_000_000;
    /// Instructions within which an interrupt that was sent is taken.
    const ARRIVES: u64 = 100;
    let level = if level { LEVEL } else { 0 };
    ASKED.store(u32::from(vector) | level | ASKS, Ordering::SeqCst);
    cpu::wait(LONG, || ASKED.load(Ordering::SeqCst) == 0);
    cpu::wait(ARRIVES, || false);
}

fn serve(_: usize) {
    let machine = *MACHINE.lock();
    while is_there() {
        let asked = ASKED.load(Ordering::SeqCst);
        if let (Some(machine), true) = (machine, asked != 0) {
            request(machine, asked as u8, asked & LEVEL != 0);
            ASKED.store(0, Ordering::SeqCst);
        }
        core::hint::spin_loop();
    }
}

/// Requests a vector of vCPU 0 and tells it.
pub(super) fn request(machine: &VirtualMachine, vector: u8, level: bool) {
    machine.carry_out(0, machine.slot(0).request(vector, trigger(level)));
}

pub(super) const fn trigger(level: bool) -> Trigger {
    if level { Trigger::Level } else { Trigger::Edge }
}
