//! KVM's `kvm_lapic_state`: 1024 bytes, each register at its page offset.
//!
//! What differs from the page: ICR's high half stands at 310 in every mode, 390 holds the current count
//! as it runs, and in x2APIC mode the ID stands at 020 in one of two ways ([`KvmIds`]). PPR is computed
//! anew on both sides: KVM may have left it stale.

use super::REGISTERS_LENGTH;
use super::correction::{Correction, Corrections};
use super::error::ImportError;
use super::foreign::write_registers;
use super::image::Image;
use super::outside::Outside;
use crate::base::Mode;
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::register::Register;

/// How the ID register of an APIC in x2APIC mode stands in the record. In xAPIC mode it is in bits
/// 31:24 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmIds {
    /// In bits 31:24: without `KVM_X2APIC_API_USE_32BIT_IDS`. Imported, it does not count.
    Narrow,
    /// In all 32 bits: with `KVM_X2APIC_API_USE_32BIT_IDS`. Imported, it must be the slot's.
    Wide,
}

/// What KVM keeps beside `kvm_lapic_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmBeside {
    /// IA32_APIC_BASE: `kvm_sregs`, or the MSR. KVM wants it set before the registers.
    pub apic_base: u64,
    /// IA32_TSC_DEADLINE, the MSR 6E0. KVM wants it set after the registers.
    pub tsc_deadline: u64,
    /// Events, MP state, upcall.
    pub outside: Outside,
}

impl<I: Inbox> LocalApic<'_, I> {
    /// The state at `now` (guest TSC) as KVM has it: see [`state`](crate::state) for when to call it and
    /// for what the format cannot hold.
    pub fn export_kvm(
        &mut self,
        ids: KvmIds,
        now: u64,
        registers: &mut [u8; REGISTERS_LENGTH],
    ) -> KvmBeside {
        let mut image = self.capture(now);
        if image.base.mode() == Mode::X2Apic && ids == KvmIds::Narrow {
            image.registers.set(Register::Id, self.slot.x2apic_id() << 24);
        }
        let current = self.timer.current_count(now, self.timer_settings());
        image.registers.set(Register::CurrentCount, current);
        write_registers(&image.registers, registers);
        KvmBeside {
            apic_base: image.base.bits(),
            tsc_deadline: image.deadline,
            outside: Self::outside(&image),
        }
    }

    /// Becomes what KVM's records say, at `now` (guest TSC): see [`state`](crate::state) for when to call
    /// it and what has to follow. Such records may hold what KVM takes and no APIC does (vectors below
    /// 16, reserved bits); that is corrected.
    ///
    /// # Errors
    /// [`ImportError`]; nothing has changed.
    pub fn import_kvm(
        &mut self,
        ids: KvmIds,
        now: u64,
        registers: &[u8],
        beside: &KvmBeside,
    ) -> Result<Corrections, ImportError> {
        let outside = &beside.outside;
        let mut image =
            Image::of_records(beside.apic_base, registers, beside.tsc_deadline, 0, outside)?;
        image.widen_id(ids, self.slot.x2apic_id())?;
        let current = image.registers.get(Register::CurrentCount);
        let corrections = image.complete(self, now, Some(current), outside)?;
        let corrected = image.correct(self.slot.profile(), self.slot.x2apic_id());
        self.install(&image);
        Ok(corrections.union(corrected).without(Correction::Ppr))
    }
}

impl Image {
    /// The ID in x2APIC mode as the page has it.
    fn widen_id(&mut self, ids: KvmIds, expected: u32) -> Result<(), ImportError> {
        let found = self.registers.get(Register::Id);
        match ids {
            _ if self.base.mode() != Mode::X2Apic => {}
            KvmIds::Wide if found != expected => {
                return Err(ImportError::ApicId { found, expected });
            }
            KvmIds::Narrow if found == expected << 24 => {
                self.registers.set(Register::Id, expected);
            }
            KvmIds::Wide | KvmIds::Narrow => {}
        }
        Ok(())
    }
}
