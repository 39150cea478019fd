//! What the vCPUs of a VM share.

use core::sync::atomic::{AtomicU64, Ordering, fence};

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
    /// [`Revision`].
    revision: AtomicU64,
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
            revision: AtomicU64::new(Revision::CHANGE),
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
        let bit = u64::from(inhibit.bit());
        let fresh = self.revision.fetch_or(bit, Ordering::SeqCst) & bit == 0;
        (0..self.vm.slots().len()).filter(move |_| fresh).map(|index| (index, Notify::Kick))
    }

    /// Takes `inhibit` back; any CPU may call. Each vCPU is accelerated again from its next entry
    /// on, if nothing else is against it. Nobody has to be told.
    pub fn allow(&self, inhibit: Inhibit) {
        self.revision.fetch_and(!u64::from(inhibit.bit()), Ordering::SeqCst);
    }

    /// The reasons set by [`inhibit`](Self::inhibit).
    #[inline]
    #[must_use]
    pub fn inhibits(&self) -> Inhibits {
        self.revision().inhibits()
    }

    /// The highest APIC ID of the VM.
    pub(crate) fn highest_id(&self) -> u32 {
        self.vm.slots().last().map_or(0, |slot| slot.x2apic_id())
    }

    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::SeqCst))
    }

    /// Somebody's addressing has changed.
    pub(crate) fn changed(&self) {
        self.revision.fetch_add(Revision::CHANGE, Ordering::SeqCst);
    }

    /// Tells the routes that lead to vCPU `index` where it is now, which the caller has stored before.
    #[inline]
    pub(crate) fn steer(&self, index: usize, whereabouts: Whereabouts) {
        if self.routes.is_empty() {
            return;
        }
        // Whereabouts were stored before routes are looked at; pairs with the fence in
        // `Route::attach`.
        fence(Ordering::SeqCst);
        for route in self.routes {
            if route.target() == Some(index) {
                route.irte().steer(whereabouts);
            }
        }
    }
}

/// What other CPUs may change for every vCPU of a VM, in one word, since it is looked at before each
/// entry: the reasons against acceleration in bits 31:0, and how often somebody's addressing has
/// changed, a hint that it is time to look again, in bits 63:32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision(u64);

impl Revision {
    const CHANGE: u64 = 1 << 32;
    /// No inhibit has this bit.
    const UNSETTLED: u64 = 1 << 31;

    /// Before anybody has looked: equal to none that a VM has.
    pub(crate) const NONE: Self = Self(Self::UNSETTLED);

    /// The number of changes.
    pub(crate) const fn changes(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn inhibits(self) -> Inhibits {
        Inhibits::from_bits(self.0 as u32)
    }

    /// The same number of changes, but equal to no revision that a VM has.
    pub(crate) const fn unsettled(self) -> Self {
        Self(self.0 | Self::UNSETTLED)
    }

    /// The same number of changes, which may be its owner's own, but the reasons of `other`.
    pub(crate) const fn settled(self, other: Self) -> Self {
        Self(self.0 >> 32 << 32 | other.0 & 0xFFFF_FFFF)
    }
}
