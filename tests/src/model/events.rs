//! Events between guest instructions.

use super::core::Core;
use super::exit::{ExitReason, Outcome, VmExit};
use super::guest::{Activity, Guest, Shadow};
use super::physical::PhysicalApic;

/// Events.
impl<'m> Core<'m> {
    /// An instruction boundary with the given RFLAGS.IF and blocking, which the guest keeps.
    ///
    /// See [`poll`](Core::poll) for what can happen.
    pub fn boundary(&mut self, interrupt_flag: bool, shadow: Shadow) -> Outcome {
        let guest = self.guest.as_mut().expect("guest operations need a VM entry first");
        guest.interrupt_flag = interrupt_flag;
        guest.shadow = shadow;
        self.poll()
    }

    /// An instruction boundary: the pending event with the highest priority happens, if any.
    ///
    /// Order: preemption timer, interrupt window or virtual interrupt, physical interrupt. A posted interrupt is
    /// processed and the order starts again, so a notification can end in a delivery within one boundary. A delivery
    /// clears RFLAGS.IF, as interrupt gates do.
    pub fn poll(&mut self) -> Outcome {
        self.step(|guest, physical| {
            if guest.preemption_timer_expired() {
                return Outcome::Exit(VmExit::fault(ExitReason::PreemptionTimer, 0));
            }
            let mut outcome = Outcome::Nothing;
            loop {
                if guest.interruptible() {
                    if guest.controls.interrupt_window_exiting {
                        return Outcome::Exit(VmExit::fault(ExitReason::InterruptWindow, 0));
                    }
                    if guest.recognized {
                        return Outcome::Delivered(guest.deliver());
                    }
                }
                match guest.physical_interrupt(physical) {
                    Outcome::Posted => outcome = Outcome::Posted,
                    Outcome::Nothing => return outcome,
                    other => return other,
                }
            }
        })
    }

    /// A physical interrupt arrives and, if a guest runs, is handled before anything else.
    ///
    /// In root operation it stays pending at the physical APIC: the host takes it with
    /// [`host_interrupt`](Core::host_interrupt), or the next guest meets it.
    pub fn external_interrupt(&mut self, vector: u8) -> Outcome {
        self.physical.raise(vector);
        if !self.in_guest() {
            return Outcome::Nothing;
        }
        self.step(|guest, physical| guest.physical_interrupt(physical))
    }

    /// A physical interrupt arrives and waits for the next instruction boundary.
    pub fn raise(&mut self, vector: u8) {
        self.physical.raise(vector);
    }

    /// An NMI arrives at a running guest.
    pub fn nmi(&mut self) -> Outcome {
        self.step(|guest, _| {
            if guest.controls.nmi_exiting {
                let interruption_info = 1 << 31 | 2 << 8 | 2;
                return Outcome::Exit(VmExit {
                    interruption_info,
                    ..VmExit::fault(ExitReason::Nmi, 0)
                });
            }
            guest.activity = Activity::Active;
            if std::mem::take(&mut guest.suppressed_threshold_exit) {
                return Outcome::Exit(VmExit::trap(ExitReason::TprBelowThreshold, 0));
            }
            Outcome::Delivered(2)
        })
    }

    /// Lets the VMX-preemption timer count down. The exit comes at the next [`boundary`](Core::boundary).
    pub fn tick(&mut self, ticks: u32) {
        let timer = self.guest.as_mut().and_then(|guest| guest.preemption_timer.as_mut());
        if let Some(left) = timer {
            *left = left.saturating_sub(ticks);
        }
    }

    /// The activity state of the running guest.
    pub fn activity(&self) -> Option<Activity> {
        self.guest.as_ref().map(|guest| guest.activity)
    }

    /// RFLAGS.IF of the running guest.
    pub fn interrupt_flag(&self) -> Option<bool> {
        self.guest.as_ref().map(|guest| guest.interrupt_flag)
    }

    /// RVI and SVI of the running guest.
    pub fn interrupt_status(&self) -> Option<(u8, u8)> {
        self.guest.as_ref().map(|guest| (guest.rvi, guest.svi))
    }

    /// Whether the running guest has a recognized virtual interrupt, waiting for a boundary that lets it in.
    pub fn recognized(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.recognized)
    }
}

impl Guest<'_> {
    /// Takes the pending physical interrupt: posted-interrupt processing, a VM exit, or delivery to the guest.
    fn physical_interrupt(&mut self, physical: &mut PhysicalApic) -> Outcome {
        let awake = matches!(self.activity, Activity::Active | Activity::Hlt);
        let Some(pending) = physical.pending().filter(|_| awake) else {
            return Outcome::Nothing;
        };
        if !self.controls.external_interrupt_exiting {
            if !self.interruptible() {
                return Outcome::Nothing;
            }
            physical.acknowledge();
            self.enter_handler();
            return Outcome::Delivered(pending);
        }
        if !self.controls.acknowledge_interrupt_on_exit {
            return Outcome::Exit(VmExit::fault(ExitReason::ExternalInterrupt, 0));
        }
        physical.acknowledge();
        if self.controls.posted_interrupts
            && u16::from(pending) == self.controls.notification_vector
        {
            self.posted_interrupt_processing(physical);
            return Outcome::Posted;
        }
        let interruption_info = 1 << 31 | u32::from(pending);
        Outcome::Exit(VmExit {
            interruption_info,
            ..VmExit::fault(ExitReason::ExternalInterrupt, 0)
        })
    }
}
