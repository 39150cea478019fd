//! The vCPU leaves its CPU.

use vlapic_core::EntryInput;

use crate::backing::Whereabouts;
use crate::vcpu::Vcpu;

/// Who is told of a post while the vCPU runs, waits for a CPU, or sleeps:
///
/// | state | our posts | IPIs of other vCPUs | IOMMU |
/// |---|---|---|---|
/// | running, AVIC | doorbell | doorbell | IsRun: doorbell |
/// | running, emulated | kick | exit 401 at the sender, then kick | log, then kick |
/// | preempted | nobody | exit 401 at the sender, then nobody | nobody |
/// | blocked | wake | exit 401 at the sender, then wake | log, then wake |
impl Vcpu<'_> {
    /// The scheduler takes the CPU away from a vCPU that wants to run on: posts need no
    /// notification. It returns to running by [`before_entry`](Self::before_entry).
    pub fn preempt(&mut self) {
        self.depart(Whereabouts::Preempted);
    }

    /// The guest halted: puts the vCPU to sleep. `false` means that something is to be done first:
    /// go on running.
    ///
    /// `input.interruptible` is RFLAGS.IF once HLT has been stepped over; with IF clear no interrupt
    /// ends the sleep, only another event.
    ///
    /// Whatever is posted after this call wakes the vCPU; whatever was posted before it is seen by
    /// it. A doorbell that was on its way hits a CPU without this vCPU and does no harm. Being woken
    /// does not mean that there is something to take: call it again, and sleep on if it says `true`.
    #[must_use]
    pub fn block(&mut self, input: EntryInput) -> bool {
        self.look_at_addressing();
        self.depart(Whereabouts::Blocked);
        let prepared = self.apic.prepare(input.now);
        let interrupted = input.interruptible && self.apic.nominate().is_some();
        !prepared.event && !interrupted
    }
}
