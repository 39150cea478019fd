//! Where the vCPU was last made ready to run.

use crate::descriptor::Control;

/// The CPU on which the vCPU last was made ready to run, and how its descriptor said so. What counts is the
/// descriptor; this saves working out anew what it should say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    cpu: u32,
    /// ON clear, or, if it has to be worked out, set.
    control: Control,
}

impl Place {
    pub(crate) const UNKNOWN: Self = Self { cpu: 0, control: Control::new(true, false, 0, 0) };

    pub(crate) const fn new(cpu: u32, control: Control) -> Self {
        Self { cpu, control: control.without_on() }
    }

    #[inline]
    pub(crate) fn is(&self, cpu: u32, control: Control) -> bool {
        self.cpu == cpu && self.control == control.without_on()
    }

    pub(crate) const fn is_on(&self, cpu: u32) -> bool {
        self.cpu == cpu
    }

    /// The same place, but the descriptor is to say otherwise.
    pub(crate) const fn forget_control(&mut self) {
        self.control = Self::UNKNOWN.control;
    }
}
