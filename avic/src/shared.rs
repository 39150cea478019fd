//! What the vCPUs of a VM share.

use core::sync::atomic::{AtomicU32, Ordering};

use vlapic_core::{Notify, Vm};
use vlapic_hal::Translate;

use crate::backing::{Backing, Whereabouts};
use crate::error::TableError;
use crate::inhibit::{Inhibit, Inhibits};
use crate::logical_table::{LogicalPage, LogicalTable};
use crate::physical_table::{PhysicalPage, PhysicalTable};
use crate::route::Route;

/// The two APIC ID tables of a VM, the routes of its devices, and the reasons for which the whole
/// VM is emulated.
///
/// The tables are what hardware looks at, not a second copy of any state: what they say is taken
/// from the pages and may lag behind only in the direction of "exit and ask".
#[derive(Debug)]
pub struct Shared<'s> {
    vm: Vm<'s, Backing>,
    physical: PhysicalTable<'s>,
    logical: LogicalTable<'s>,
    routes: &'s [Route<'s>],
    inhibits: AtomicU32,
    /// How often somebody's addressing has changed: a hint that it is time to look again.
    changes: AtomicU32,
}

/// Memory for [`Shared`], owned by the hypervisor and in place for the VM's lifetime.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'s> {
    /// One page serves 512 vCPUs; up to eight, contiguous in physical memory.
    pub physical: &'s [PhysicalPage],
    /// The logical table.
    pub logical: &'s LogicalPage,
    /// A route for each interrupt-remapping entry that may post to a vCPU of this VM.
    pub routes: &'s [Route<'s>],
}

impl<'s> Shared<'s> {
    /// Fills the tables for the vCPUs of `vm`.
    ///
    /// Each vCPU whose ID there is room for has a valid entry from now on. Do this once, before a
    /// vCPU runs.
    ///
    /// # Errors
    /// [`TableError`] if storage or APIC pages are not where hardware could use them.
    pub fn new(
        vm: Vm<'s, Backing>,
        storage: Storage<'s>,
        translate: &impl Translate,
    ) -> Result<Self, TableError> {
        let physical = PhysicalTable::new(storage.physical, translate)?;
        let logical = LogicalTable::new(storage.logical, translate)?;
        for slot in vm.slots() {
            let page = translate.physical_address(slot.page()).ok_or(TableError::NoAddress)?;
            physical.insert(slot.x2apic_id(), page)?;
        }
        Ok(Self {
            vm,
            physical,
            logical,
            routes: storage.routes,
            inhibits: AtomicU32::new(0),
            changes: AtomicU32::new(1),
        })
    }

    /// The vCPUs.
    #[must_use]
    pub const fn vm(&self) -> Vm<'s, Backing> {
        self.vm
    }

    /// The physical APIC ID table.
    #[must_use]
    pub const fn physical(&self) -> &PhysicalTable<'s> {
        &self.physical
    }

    /// The logical APIC ID table.
    #[must_use]
    pub const fn logical(&self) -> &LogicalTable<'s> {
        &self.logical
    }

    /// The routes given at construction.
    #[must_use]
    pub const fn routes(&self) -> &'s [Route<'s>] {
        self.routes
    }

    /// Has every vCPU emulated for `inhibit`; any CPU may call. Carry the notifications out: each
    /// vCPU is emulated from its next entry on. Nothing posted meanwhile is lost, as IRR is the same
    /// with and without AVIC.
    #[must_use = "vCPUs in guest mode have to be kicked"]
    pub fn inhibit(&self, inhibit: Inhibit) -> impl Iterator<Item = (usize, Notify)> + use<'s> {
        let before = self.inhibits.fetch_or(inhibit.bit(), Ordering::SeqCst);
        let fresh = before & inhibit.bit() == 0;
        (0..self.vm.slots().len()).filter(move |_| fresh).map(|index| (index, Notify::Kick))
    }

    /// Takes `inhibit` back; any CPU may call. Each vCPU is accelerated again from its next entry
    /// on, if nothing else is against it. Nobody has to be told.
    pub fn allow(&self, inhibit: Inhibit) {
        self.inhibits.fetch_and(!inhibit.bit(), Ordering::SeqCst);
    }

    /// The reasons set by [`inhibit`](Self::inhibit).
    #[inline]
    #[must_use]
    pub fn inhibits(&self) -> Inhibits {
        Inhibits::from_bits(self.inhibits.load(Ordering::SeqCst))
    }

    /// The highest APIC ID of the VM.
    pub(crate) fn highest_id(&self) -> u32 {
        self.vm.slots().last().map_or(0, |slot| slot.x2apic_id())
    }

    #[inline]
    pub(crate) fn changes(&self) -> u32 {
        self.changes.load(Ordering::SeqCst)
    }

    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Tells the routes that lead to vCPU `index` where it is now.
    #[inline]
    pub(crate) fn steer(&self, index: usize, whereabouts: Whereabouts) {
        for route in self.routes {
            if route.target() == Some(index) {
                route.irte().steer(whereabouts);
            }
        }
    }
}
