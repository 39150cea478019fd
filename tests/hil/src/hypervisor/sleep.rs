//! A vCPU that has nothing to do, and what wakes it.

use vlapic_core::EntryInput;
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;

use super::HypervisorError;
use super::vcpu::Loop;
use crate::machine::{cpu, interrupts, smp};

/// The guest executed HLT: sleeps until it has something to take.
///
/// The vCPU goes on its CPU's wakeup list first (here each CPU has one vCPU, so the list is the CPU), then the driver says
/// whether there is reason to stay awake. Whatever is posted after that question wakes it.
pub(super) fn halted(this: &mut Loop<'_>) -> Result<(), HypervisorError> {
    loop {
        let input = EntryInput {
            now: TscClock.now(),
            cpu: smp::apic_id(cpu::this_cpu()),
            interruptible: this.current.interrupts_enabled()?,
            injecting: false,
        };
        if !this.driver.block(input) {
            return Ok(());
        }
        if this.machine.is_requested(this.index) || this.machine.is_stopped(this.index) {
            return Ok(());
        }
        let deadline = this.driver.apic().next_deadline();
        wait(this, deadline);
    }
}

/// A vCPU that waits for INIT or SIPI: sleeps until it is told of anything.
pub(super) fn until_told(this: &Loop<'_>) {
    while !this.machine.is_requested(this.index) && !this.machine.is_stopped(this.index) {
        wait(this, None);
    }
}

/// Waits for an interrupt, or for `deadline`, in guest TSC ticks. The host's timer is left alone: until a deadline the CPU
/// looks at the clock.
fn wait(this: &Loop<'_>, deadline: Option<u64>) {
    let woken = || {
        this.machine.is_requested(this.index) || this.driver.apic().slot().inbox().wants_waking()
    };
    match deadline {
        None => interrupts::wait_unless(woken),
        Some(deadline) => {
            while !woken() && TscClock.now() < deadline {
                core::hint::spin_loop();
            }
        }
    }
}
