//! Who is told of a post while the vCPU runs, waits for a CPU, sleeps, or is offline.
//!
//! | state | SN | NV | NDST |
//! |---|---|---|---|
//! | running | 0 | running | this CPU |
//! | running without posted interrupts | 1 | wakeup | this CPU |
//! | preempted | 1 | as before | stale |
//! | offline | 1 | running | stale |
//! | blocked | 0 | wakeup | the CPU on whose list the vCPU stands |
//!
//! Two rules others broke: whoever clears SN looks at PIR afterwards, since VT-d posts under SN
//! without setting ON; and SN, NV and NDST are final before the last look at PIR before an entry.
//! [`Vcpu::before_entry`](crate::Vcpu::before_entry) does both by itself, so a hypervisor that
//! never blocks and has no posting devices needs no call of this module.

use vlapic_core::ApicPage;

use crate::descriptor::Control;
use crate::posting::Posting;

impl Posting<'_> {
    /// The vCPU is about to run on the CPU with physical APIC ID `cpu`: NV, NDST and SN as for
    /// running, and everything posted goes into `page`. The control word as it is from now on, but
    /// for ON.
    ///
    /// `hardware` says whether posted-interrupt processing is on. Without it SN together with the
    /// wakeup vector tells our own posts that they have to kick; VT-d is silent, and if it has to be
    /// urgent its interrupt makes the vCPU exit.
    pub(crate) fn run(&self, cpu: u32, hardware: bool, page: &ApicPage) -> Control {
        let nv = if hardware { self.vectors().running } else { self.vectors().wakeup };
        let wanted = Control::new(false, !hardware, nv, self.ndst(cpu));
        self.descriptor().set_target(!hardware, nv, wanted.ndst());
        self.collect_all(page);
        wanted
    }

    /// The vCPU was descheduled but wants to run on: posts need no notification. The scheduler
    /// calls this; it returns to running by `before_entry`.
    pub fn preempt(&self) {
        self.descriptor().suppress();
    }

    /// The vCPU is not going to run until something outside brings it back (its power state, a
    /// debugger, migration): nothing notifies, not even a post to a vCPU that sleeps. What is posted
    /// meanwhile is kept, unless RESET or INIT discards it. It comes back by `before_entry`, or by
    /// `block` if it is to sleep on.
    pub fn offline(&self) {
        self.descriptor().set_target(true, self.vectors().running, 0);
    }

    /// The vCPU goes to sleep on the list of the CPU with physical APIC ID `cpu`. Put it on that
    /// list first. From here on posts wake it; what was posted before the caller finds by its
    /// own look at the page, which must come after this.
    pub(crate) fn block(&self, cpu: u32) {
        self.descriptor().set_target(false, self.vectors().wakeup, self.ndst(cpu));
        self.descriptor().recompute_on();
    }

    /// The CPU on whose list the sleeping vCPU stands goes away: moves the wakeup to `cpu`.
    /// `true` if something is pending, in which case wake the vCPU. Nothing changes if it no longer
    /// sleeps.
    ///
    /// Put the vCPU on the new CPU's list first.
    pub fn move_blocked(&self, cpu: u32) -> bool {
        match self.descriptor().retarget(self.vectors().wakeup, self.ndst(cpu)) {
            Some(before) => self.descriptor().recompute_on() || before.on(),
            None => false,
        }
    }

    /// For the handler of the wakeup vector: whether this sleeping vCPU is one to wake.
    #[must_use]
    pub fn wants_waking(&self) -> bool {
        let control = self.descriptor().control();
        control.on() || control.sn() && self.descriptor().has_posts()
    }
}
