//! VM entry, and what the processor does before the guest's first instruction.

use std::sync::Arc;

use super::bus::PhysicalBus;
use super::controls::Controls;
use super::entry_checks::{Violation, violations};
use super::exit::{ExitReason, VmExit};
use super::field;
use super::guest::{Activity, Guest};
use super::knobs::Knobs;
use super::memory::Memory;
use super::page::{Page, offset};
use super::vmcs::VmcsRegion;

/// A VM entry that the processor made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Entered {
    /// The vector of the event that the entry injected.
    pub injected: Option<u8>,
    /// The VM exit that followed before any guest instruction.
    pub exit: Option<VmExit>,
}

/// A VM entry that the processor refused: VMfailValid, or VMfailInvalid if no VMCS is current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryFailure {
    /// No VMCS is current on this core.
    NoCurrentVmcs,
    /// VM-instruction error 7: invalid control fields, with all that is wrong.
    InvalidControls(Vec<Violation>),
    /// The entry failed while loading guest state: exit reason 33 with bit 31 set. Here: an event to inject, an
    /// activity state and a blocking that exclude each other.
    InvalidGuestState,
}

/// Checks the controls and loads guest state.
pub(super) fn enter<'m>(
    vmcs: &VmcsRegion,
    memory: &Arc<Memory<'m>>,
    bus: &Arc<PhysicalBus>,
    knobs: Knobs,
) -> Result<(Guest<'m>, Entered), EntryFailure> {
    let controls = Controls::of(vmcs);
    let found = violations(vmcs, memory, &knobs);
    let page = Page::new(memory.clone(), controls.virtual_apic_address);
    let page_is_there = controls.tpr_shadow && !found.contains(&Violation::VirtualApicAddress);
    if page_is_there && knobs.entry_clears_vtpr_upper_bytes {
        page.store(offset::VTPR, page.vtpr().into());
    }
    if !found.is_empty() {
        return Err(EntryFailure::InvalidControls(found));
    }

    let mut guest = Guest::new(vmcs, controls, page, memory.clone(), bus.clone(), knobs);
    if !guest_state_is_consistent(vmcs, &guest) {
        return Err(EntryFailure::InvalidGuestState);
    }
    if controls.virtual_interrupt_delivery {
        guest.ppr_virtualization();
        guest.evaluate();
    }
    let injected = inject(vmcs, &mut guest);
    let exit = immediate_exit(&mut guest);
    Ok((guest, Entered { injected, exit }))
}

/// The checks that tie the event to inject, RFLAGS.IF, interruptibility and activity state together.
fn guest_state_is_consistent(vmcs: &VmcsRegion, guest: &Guest<'_>) -> bool {
    let interruptibility = vmcs.get(field::GUEST_INTERRUPTIBILITY);
    let sti_blocking = interruptibility & 1 != 0;
    let blocking = interruptibility & 3;
    let info = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
    let injects = info >> 31 & 1 != 0;
    let injects_interrupt = injects && info >> 8 & 7 == 0;
    blocking != 3
        && (!sti_blocking || guest.interrupt_flag)
        && (blocking == 0 || guest.activity == Activity::Active)
        && (!injects_interrupt || guest.interrupt_flag && blocking == 0)
        && (!injects || guest.activity != Activity::WaitForSipi)
        && (!injects_interrupt || guest.activity != Activity::Shutdown)
}

/// The event that VM entry delivers; it ends the HLT state.
fn inject(vmcs: &VmcsRegion, guest: &mut Guest<'_>) -> Option<u8> {
    let info = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
    let valid = info >> 31 & 1 != 0;
    if valid {
        guest.enter_handler();
    }
    valid.then_some(info as u8)
}

/// A VM exit between VM entry and the guest's first instruction.
fn immediate_exit(guest: &mut Guest<'_>) -> Option<VmExit> {
    let controls = &guest.controls;
    let below_threshold = controls.tpr_shadow
        && controls.virtualize_apic_accesses
        && !controls.virtual_interrupt_delivery
        && guest.tpr_is_below_threshold();
    if below_threshold {
        match guest.activity {
            Activity::Active | Activity::Hlt => {
                return Some(VmExit::trap(ExitReason::TprBelowThreshold, 0));
            }
            // Held back until an event ends the shutdown state.
            Activity::Shutdown => guest.suppressed_threshold_exit = true,
            Activity::WaitForSipi => {}
        }
    }
    guest.preemption_timer_expired().then(|| VmExit::fault(ExitReason::PreemptionTimer, 0))
}
