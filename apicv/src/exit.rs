//! The four exits that are about the APIC: 43, 44, 45 and 56.

use vlapic_core::{Effect, Register, Vector};

use crate::vcpu::Vcpu;

/// What the VMCS says of a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Basic exit reason, bits 15:0 of field 4402.
    pub reason: u16,
    /// Exit qualification, field 6400.
    pub qualification: u64,
}

/// What [`Vcpu::after_exit`] made of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// Not an APIC exit: the hypervisor's own.
    NotOurs,
    /// Handled. Carry the effect out and resume; RIP is already past the instruction.
    Done(Effect),
    /// The guest's instruction was not executed. Decode it, give the access to
    /// [`LocalApic::read_mmio`](vlapic_core::LocalApic::read_mmio) or
    /// [`write_mmio`](vlapic_core::LocalApic::write_mmio), and step over it.
    Decode(ApicAccess),
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

/// An APIC-access exit, from its qualification (SDM Vol. 3C Table 27-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicAccess {
    /// Byte offset into the APIC-access page. Undefined for guest-physical accesses.
    pub offset: u16,
    /// What the access was.
    pub kind: AccessKind,
}

/// What made an APIC-access exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessKind {
    /// 0: a data read by an instruction.
    Read,
    /// 1: a data write by an instruction.
    Write,
    /// 2: an instruction fetch.
    Fetch,
    /// 3: a linear access while an event was delivered; the IDT-vectoring information is valid.
    EventDelivery,
    /// 10: a guest-physical access while an event was delivered.
    PhysicalEventDelivery,
    /// 15: a guest-physical access of an instruction's fetch or execution.
    Physical,
    /// Any other: accesses for monitoring and tracing, and reserved types.
    Other(u8),
}

impl ApicAccess {
    /// The meaning of qualification `raw`.
    #[must_use]
    pub const fn from_qualification(raw: u64) -> Self {
        let kind = match (raw >> 12) as u8 & 0xF {
            0 => AccessKind::Read,
            1 => AccessKind::Write,
            2 => AccessKind::Fetch,
            3 => AccessKind::EventDelivery,
            10 => AccessKind::PhysicalEventDelivery,
            15 => AccessKind::Physical,
            other => AccessKind::Other(other),
        };
        Self { offset: raw as u16 & 0xFFF, kind }
    }
}

impl Vcpu<'_> {
    /// Handles `exit` if it is about the APIC. `now` is the guest's TSC.
    ///
    /// Exits 43, 45 and 56 are trap-like: the processor has done the access, so what follows is
    /// what follows any write, [`LocalApic::after_write`](vlapic_core::LocalApic::after_write), and
    /// nothing of it can fault. Exit 44 is fault-like and comes back as [`Outcome::Decode`].
    #[inline]
    pub fn after_exit(&mut self, exit: Exit, now: u64) -> Outcome {
        match exit.reason {
            reason::APIC_WRITE => Outcome::Done(self.after_apic_write(exit.qualification, now)),
            reason::VIRTUALIZED_EOI => Outcome::Done(self.after_virtual_eoi(exit.qualification)),
            reason::TPR_BELOW_THRESHOLD => {
                Outcome::Done(self.apic_mut().after_write(Register::Tpr, now))
            }
            reason::APIC_ACCESS => {
                Outcome::Decode(ApicAccess::from_qualification(exit.qualification))
            }
            _ => Outcome::NotOurs,
        }
    }

    /// Qualification 11:0 is the offset written. A write narrower than a register exits with its
    /// own offset; the register is the one whose slot it lies in.
    fn after_apic_write(&mut self, qualification: u64, now: u64) -> Effect {
        match Register::at(qualification as u16 & 0xFF0) {
            Some(register) => self.apic_mut().after_write(register, now),
            None => Effect::None,
        }
    }

    /// The processor has taken the vector out of ISR and updated PPR and SVI; the broadcast is
    /// what is left. A spurious EOI exits with vector 0, if at all, and means nothing.
    fn after_virtual_eoi(&mut self, qualification: u64) -> Effect {
        match Vector::new(qualification as u8) {
            Some(vector) => self.apic_mut().after_virtual_eoi(vector),
            None => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualification_of_an_apic_access() {
        let write = ApicAccess::from_qualification(0x10F0);
        assert_eq!(write, ApicAccess { offset: 0xF0, kind: AccessKind::Write });
        let kinds = [
            (0x0, AccessKind::Read),
            (0x2, AccessKind::Fetch),
            (0x3, AccessKind::EventDelivery),
            (0x4, AccessKind::Other(4)),
            (0xA, AccessKind::PhysicalEventDelivery),
            (0xF, AccessKind::Physical),
        ];
        for (raw, kind) in kinds {
            assert_eq!(ApicAccess::from_qualification(raw << 12 | 0x390).kind, kind);
        }
    }
}
