//! Which of AVIC's two faces a vCPU runs with, and the VMCB programmed for it.

use vlapic_core::Mode;

use crate::negotiate::Feature;
use crate::vcpu::{DEFAULT_BASE, Vcpu};
use crate::vmcb::{Field, Fields, InterruptControl, Vmcb};

/// How the processor helps at an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// Not at all: accesses exit, interrupts are injected.
    Emulated,
    /// xAVIC: the register window.
    XAvic,
    /// x2AVIC: the MSRs.
    X2Avic,
}

impl Face {
    /// What a VMCB is programmed for.
    #[must_use]
    pub fn of<V: Vmcb + ?Sized>(vmcb: &V) -> Self {
        let control = vmcb.interrupt_control();
        match (
            control.contains(InterruptControl::AVIC_ENABLE),
            control.contains(InterruptControl::X2AVIC_ENABLE),
        ) {
            (false, _) => Self::Emulated,
            (true, false) => Self::XAvic,
            (true, true) => Self::X2Avic,
        }
    }
}

/// TLB_CONTROL in word 058: flush this guest's translations.
const FLUSH_THIS_ASID: u64 = 3;
/// Flush this guest's translations but the global ones.
const FLUSH_NON_GLOBAL: u64 = 7;

impl Vcpu<'_> {
    /// The face for the next entry. Software-enable is no part of the question: an APIC that does
    /// not accept still delivers what it holds, and its guest has to be able to enable it.
    #[inline]
    pub(crate) fn wanted_face(&self) -> Face {
        if !self.features.contains(Feature::Avic) {
            return Face::Emulated;
        }
        // The hypervisor's own reasons are the quickest to see, and those that last.
        let reasons = self.shared.inhibits().union(self.slot().inbox().inhibits());
        if reasons.stop_acceleration() || self.inhibits().stop_acceleration() {
            return Face::Emulated;
        }
        match self.slot().mode() {
            Mode::Disabled => Face::Emulated,
            Mode::XApic => Face::XAvic,
            Mode::X2Apic => Face::X2Avic,
        }
    }

    /// Objects against a mapped register window, or no longer. `false`: it is mapped and must not be.
    #[inline]
    pub(crate) fn look_at_window(&mut self, face: Face) -> bool {
        let Some(resources) = self.resources else { return true };
        let objects = face != Face::XAvic && self.slot().base().address() == DEFAULT_BASE;
        if objects != self.objects {
            if objects {
                resources.window.object();
            } else {
                resources.window.consent();
            }
            self.objects = objects;
        }
        !(objects && resources.window.is_mapped())
    }

    /// Programs the VMCB for `face`, if it is not.
    ///
    /// A change of face flushes the translations of the ASID, which may have the register window
    /// either way, and makes the processor load all of the VMCB anew: which clean bit covers the
    /// enable bits is not said.
    #[inline]
    pub(crate) fn turn<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V, face: Face) {
        if Face::of(vmcb) != face {
            self.program(vmcb, face);
        }
    }

    #[cold]
    pub(crate) fn program<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V, face: Face) {
        if let Some(resources) = self.resources {
            if face == Face::X2Avic {
                resources.msr_permissions.allow_x2avic();
            } else {
                resources.msr_permissions.intercept_all_x2apic();
            }
        }
        if face != Face::Emulated {
            self.point(vmcb, face);
            self.set_window(vmcb, false);
            self.intercept_cr8_writes(vmcb, false);
        }
        let control = vmcb
            .interrupt_control()
            .set(InterruptControl::AVIC_ENABLE, face != Face::Emulated)
            .set(InterruptControl::X2AVIC_ENABLE, face == Face::X2Avic);
        vmcb.write(Field::InterruptControl, control.bits());
        vmcb.store(Field::CleanBits.offset(), 0);
        self.arm_flush(vmcb);
    }

    fn point<V: Vmcb + ?Sized>(&self, vmcb: &mut V, face: Face) {
        let physical = self.shared.physical();
        let page = physical.entry(self.slot().x2apic_id()).backing_page();
        vmcb.write(Field::BackingPage, page.as_u64());
        let table = physical.address().as_u64() | u64::from(self.max_index(face));
        vmcb.write(Field::PhysicalTable, table);
        vmcb.write(Field::LogicalTable, self.shared.logical().address().as_u64());
        vmcb.write(Field::ApicBar, DEFAULT_BASE);
    }

    /// Has the next entry flush this ASID's translations, unless it flushes more already.
    pub(crate) fn arm_flush<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V) {
        let word = vmcb.read(Field::TlbControl);
        if matches!(word >> 32 & 0xFF, 0 | FLUSH_NON_GLOBAL) {
            vmcb.write(Field::TlbControl, word & !(0xFF << 32) | FLUSH_THIS_ASID << 32);
            self.flush_armed = true;
        }
    }

    /// The entry has done the flush.
    #[inline(always)]
    pub(crate) fn disarm_flush<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V) {
        if self.flush_armed {
            self.flush_done(vmcb);
        }
    }

    #[inline(never)]
    fn flush_done<V: Vmcb + ?Sized>(&mut self, vmcb: &mut V) {
        self.flush_armed = false;
        let word = vmcb.read(Field::TlbControl);
        if word >> 32 & 0xFF == FLUSH_THIS_ASID {
            vmcb.write(Field::TlbControl, word & !(0xFF << 32));
        }
    }
}
