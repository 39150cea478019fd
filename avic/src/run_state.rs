//! The vCPU comes to a CPU and leaves it.

use core::sync::atomic::{Ordering, fence};

use vlapic_core::EntryInput;

use crate::backing::Whereabouts;
use crate::face::Face;
use crate::negotiate::Feature;
use crate::vcpu::Vcpu;
use crate::vmcb::Vmcb;

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

    /// Assigns the vCPU to this CPU: physical table first, then whereabouts, then routes. If that
    /// was a change a SeqCst fence stands between it and the look at IRR, by VMRUN or by injection.
    #[inline(never)]
    pub(crate) fn assign<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V, cpu: u32, face: Face) {
        let reached = face != Face::Emulated && cpu <= self.trust.highest_host_id();
        let whereabouts = if reached && self.features.contains(Feature::Doorbell) {
            Whereabouts::Doorbell(cpu)
        } else {
            Whereabouts::Kick(cpu)
        };
        let before = self.slot().inbox().whereabouts();
        if face == Face::XAvic
            && before.cpu() != Some(cpu)
            && !self.resources.is_some_and(|resources| resources.private_asid)
        {
            self.arm_flush(vmcb);
        }
        let running = reached && self.features.contains(Feature::IsRunning);
        if before == whereabouts && self.entry.get().is_running() == running {
            return;
        }
        if !running {
            self.depart(whereabouts);
            return;
        }
        // 12 bits, as it is reached.
        self.entry.run(cpu as u16);
        self.slot().inbox().move_to(whereabouts);
        self.shared.steer(self.index, whereabouts);
        // Pairs with the locked OR in `Backing::post`, and with the IOMMU's write of IRR before its
        // look at IsRun.
        fence(Ordering::SeqCst);
    }

    /// Takes IsRunning away: whereabouts first, then routes, then the physical table, then a SeqCst
    /// fence before the caller looks at IRR.
    pub(crate) fn depart(&self, whereabouts: Whereabouts) {
        self.slot().inbox().move_to(whereabouts);
        self.shared.steer(self.index, whereabouts);
        self.entry.stop();
        // Pairs with the locked OR in `Backing::post`, and with the senders' write of IRR before their
        // look at IsRunning.
        fence(Ordering::SeqCst);
    }
}
