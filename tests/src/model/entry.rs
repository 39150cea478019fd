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
}

/// Checks the controls and loads guest state.
pub(super) fn enter<'m>(
    vmcs: &VmcsRegion,
    memory: &Arc<Memory<'m>>,
    bus: &Arc<PhysicalBus>,
    knobs: Knobs,
) -> Result<(Guest<'m>, Entered), Vec<Violation>> {
    let controls = Controls::of(vmcs);
    let found = violations(vmcs, memory, &knobs);
    let page = Page::new(memory.clone(), controls.virtual_apic_address);
    let page_is_there = controls.tpr_shadow && !found.contains(&Violation::VirtualApicAddress);
    if page_is_there && knobs.entry_clears_vtpr_upper_bytes {
        page.store(offset::VTPR, page.vtpr().into());
    }
    if !found.is_empty() {
        return Err(found);
    }

    let mut guest = Guest::new(vmcs, controls, page, memory.clone(), bus.clone(), knobs);
    if controls.virtual_interrupt_delivery {
        guest.ppr_virtualization();
        guest.evaluate();
    }
    let injected = inject(vmcs, &mut guest);
    let exit = immediate_exit(&mut guest);
    Ok((guest, Entered { injected, exit }))
}

/// The event that VM entry delivers; it ends the HLT state.
fn inject(vmcs: &VmcsRegion, guest: &mut Guest<'_>) -> Option<u8> {
    let info = vmcs.get(field::ENTRY_INTERRUPTION_INFO);
    let valid = info >> 31 & 1 != 0;
    if valid && guest.activity == Activity::Hlt {
        guest.activity = Activity::Active;
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
