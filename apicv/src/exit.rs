//! The four exits that are about the APIC: 43, 44, 45 and 56.

use vlapic_core::{AccessKind, Effect, ExitOutcome, Register, Vector, WindowAccess};

use crate::vcpu::Vcpu;

/// What the VMCS says of a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Basic exit reason, bits 15:0 of field 4402.
    pub reason: u16,
    /// Exit qualification, field 6400.
    pub qualification: u64,
}

/// Basic exit reasons (SDM Vol. 3D Appendix C).
pub mod reason {
    /// TPR below threshold.
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    /// APIC access.
    pub const APIC_ACCESS: u16 = 44;
    /// Virtualized EOI.
    pub const VIRTUALIZED_EOI: u16 = 45;
    /// APIC write.
    pub const APIC_WRITE: u16 = 56;
}

/// The access that an APIC-access exit tells of (SDM Vol. 3C Table 27-6).
#[must_use]
pub(crate) const fn window_access(qualification: u64) -> WindowAccess {
    let kind = match (qualification >> 12) as u8 & 0xF {
        0 => AccessKind::Read,
        1 => AccessKind::Write,
        2 => AccessKind::Fetch,
        3 => AccessKind::EventDelivery,
        10 => AccessKind::PhysicalEventDelivery,
        15 => AccessKind::Physical,
        other => AccessKind::Other(other),
    };
    WindowAccess { offset: qualification as u16 & 0xFFF, kind }
}

impl Vcpu<'_> {
    /// Handles `exit` if it is about the APIC. `now` is the guest's TSC.
    ///
    /// Exits 43, 45 and 56 are trap-like: the processor has done the access, so what follows is
    /// what follows any write, [`LocalApic::after_write`](vlapic_core::LocalApic::after_write), and
    /// nothing of it can fault. Exit 44 is fault-like and comes back as [`ExitOutcome::Decode`].
    #[inline]
    pub fn after_exit(&mut self, exit: Exit, now: u64) -> ExitOutcome {
        self.cached.entered();
        match exit.reason {
            reason::APIC_WRITE => ExitOutcome::Done(self.after_apic_write(exit.qualification, now)),
            reason::VIRTUALIZED_EOI => {
                ExitOutcome::Done(self.after_virtual_eoi(exit.qualification))
            }
            reason::TPR_BELOW_THRESHOLD => {
                ExitOutcome::Done(self.apic_mut().after_write(Register::Tpr, now))
            }
            reason::APIC_ACCESS => ExitOutcome::Decode(window_access(exit.qualification)),
            _ => ExitOutcome::NotOurs,
        }
    }

    /// Qualification 11:0 is the offset written. A write narrower than a register exits with its
    /// own offset; the register is the one whose slot it lies in.
    #[inline(never)]
    fn after_apic_write(&mut self, qualification: u64, now: u64) -> Effect {
        match Register::at(qualification as u16 & 0xFF0) {
            Some(register) => self.apic_mut().after_write(register, now),
            None => Effect::None,
        }
    }

    /// The processor has taken the vector out of ISR and updated PPR and SVI; the broadcast is
    /// what is left. A spurious EOI exits with vector 0, if at all, and means nothing.
    #[inline(never)]
    fn after_virtual_eoi(&mut self, qualification: u64) -> Effect {
        let Some(vector) = Vector::new(qualification as u8) else { return Effect::None };
        let effect = self.apic_mut().after_virtual_eoi(vector);
        if effect == Effect::None {
            self.review_unless_level(vector);
        }
        effect
    }

    /// The bit of an edge is there because somebody may send it as level, or for no reason any more.
    #[cold]
    fn review_unless_level(&self, vector: Vector) {
        let slot = self.apic().slot();
        if !slot.page().tmr().contains(vector) {
            slot.inbox().review_eoi_exits();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualification_of_an_apic_access() {
        let write = window_access(0x10F0);
        assert_eq!(write, WindowAccess { offset: 0xF0, kind: AccessKind::Write });
        let kinds = [
            (0x0, AccessKind::Read),
            (0x2, AccessKind::Fetch),
            (0x3, AccessKind::EventDelivery),
            (0x4, AccessKind::Other(4)),
            (0xA, AccessKind::PhysicalEventDelivery),
            (0xF, AccessKind::Physical),
        ];
        for (raw, kind) in kinds {
            assert_eq!(window_access(raw << 12 | 0x390).kind, kind);
        }
    }
}
