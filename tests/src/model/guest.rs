//! A logical processor in VMX non-root operation.

use std::sync::Arc;

use super::bus::PhysicalBus;
use super::controls::Controls;
use super::field;
use super::interleave::Interleaving;
use super::knobs::Knobs;
use super::memory::Memory;
use super::page::{Page, offset};
use super::vmcs::VmcsRegion;

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// What the processor holds while a guest runs: the cached controls, RVI and SVI, and whether a virtual interrupt is
/// recognized.
#[derive(Debug)]
pub(super) struct Guest<'m> {
    pub(super) controls: Controls,
    pub(super) page: Page<'m>,
    pub(super) memory: Arc<Memory<'m>>,
    pub(super) bus: Arc<PhysicalBus>,
    pub(super) knobs: Knobs,
    pub(super) physical_width: u32,
    pub(super) rvi: u8,
    pub(super) svi: u8,
    pub(super) recognized: bool,
    pub(super) activity: Activity,
    pub(super) interrupt_flag: bool,
    pub(super) shadow: Shadow,
    pub(super) suppressed_threshold_exit: bool,
    pub(super) preemption_timer: Option<u32>,
    pub(super) others: Interleaving<'m>,
    watched: Vec<(u32, u32)>,
}

/// The activity state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Activity {
    Active,
    Hlt,
    Shutdown,
    WaitForSipi,
}

/// What blocks interrupts at an instruction boundary besides RFLAGS.IF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shadow {
    /// Nothing.
    None = 0,
    /// The instruction before the boundary was STI.
    Sti = 1,
    /// The instruction before the boundary was MOV SS or POP SS.
    MovSs = 2,
}

/// Where the guest's APIC window leads after paging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Window {
    /// To the APIC-access page of the VMCS; an EPT violation if that control is 0.
    #[default]
    ApicAccessPage,
    /// To the page at this physical address: the APIC-access page if it is that of the VMCS, else ordinary memory.
    Mapped(u64),
    /// The same by another guest address than the window's: both can be remembered at once.
    Memory(u64),
    /// Nowhere: every access is an EPT violation.
    NotPresent,
}

impl<'m> Guest<'m> {
    /// Loads guest state from a VMCS that passed the entry checks.
    pub(super) fn new(
        vmcs: &VmcsRegion,
        controls: Controls,
        page: Page<'m>,
        memory: Arc<Memory<'m>>,
        bus: Arc<PhysicalBus>,
        knobs: Knobs,
    ) -> Self {
        let status = vmcs.get(field::GUEST_INTERRUPT_STATUS);
        let delivery = controls.virtual_interrupt_delivery;
        Guest {
            controls,
            page,
            memory,
            bus,
            knobs,
            physical_width: vmcs.capability().physical_width,
            rvi: if delivery { status as u8 } else { 0 },
            svi: if delivery { (status >> 8) as u8 } else { 0 },
            recognized: false,
            activity: match vmcs.get(field::GUEST_ACTIVITY_STATE) {
                0 => Activity::Active,
                1 => Activity::Hlt,
                2 => Activity::Shutdown,
                _ => Activity::WaitForSipi,
            },
            interrupt_flag: vmcs.get(field::GUEST_RFLAGS) & INTERRUPT_FLAG != 0,
            shadow: match vmcs.get(field::GUEST_INTERRUPTIBILITY) & 3 {
                0 => Shadow::None,
                1 => Shadow::Sti,
                _ => Shadow::MovSs,
            },
            suppressed_threshold_exit: false,
            preemption_timer: controls
                .preemption_timer
                .then(|| vmcs.get(field::PREEMPTION_TIMER) as u32),
            others: Interleaving::default(),
            watched: Vec::new(),
        }
    }

    /// Saves guest state at a VM exit.
    pub(super) fn save(&self, vmcs: &mut VmcsRegion) {
        if self.controls.virtual_interrupt_delivery {
            vmcs.set(field::GUEST_INTERRUPT_STATUS, u64::from(self.svi) << 8 | u64::from(self.rvi));
        }
        vmcs.set(field::GUEST_ACTIVITY_STATE, self.activity as u64);
        let flags = vmcs.get(field::GUEST_RFLAGS) & !INTERRUPT_FLAG;
        let flag = if self.interrupt_flag { INTERRUPT_FLAG } else { 0 };
        vmcs.set(field::GUEST_RFLAGS, flags | flag);
        let interruptibility = vmcs.get(field::GUEST_INTERRUPTIBILITY) & !3;
        vmcs.set(field::GUEST_INTERRUPTIBILITY, interruptibility | self.shadow as u64);
        if let (Some(left), true) = (self.preemption_timer, self.controls.save_preemption_timer) {
            vmcs.set(field::PREEMPTION_TIMER, left.into());
        }
    }

    /// Whether the VMX-preemption timer is on and has counted down.
    pub(super) fn preemption_timer_expired(&self) -> bool {
        self.preemption_timer == Some(0) && self.activity != Activity::WaitForSipi
    }

    /// Notes the page's virtualized fields, to see at the next step whether software changed them in between.
    pub(super) fn remember_page(&mut self) {
        let fields = self.virtualized_fields();
        self.watched.clear();
        self.watched.extend(fields.into_iter().map(|offset| (offset, self.page.load(offset))));
    }

    /// The offsets of virtualized fields that software changed since the last step, which it must not do while the
    /// page is in use.
    pub(super) fn fields_changed_by_software(&self) -> Vec<u32> {
        let changed =
            self.watched.iter().filter(|(offset, value)| self.page.load(*offset) != *value);
        changed.map(|(offset, _)| *offset).collect()
    }

    fn virtualized_fields(&self) -> Vec<u32> {
        let mut fields = Vec::new();
        if self.controls.tpr_shadow {
            fields.push(offset::VTPR);
        }
        if self.controls.virtual_interrupt_delivery {
            fields.extend([offset::VPPR, offset::VEOI]);
            fields.extend((0..8).flat_map(|i| [offset::VISR + i * 0x10, offset::VIRR + i * 0x10]));
        }
        if self.controls.virtual_interrupt_delivery || self.controls.ipi_virtualization {
            fields.extend([offset::VICR_LO, offset::VICR_HI]);
        }
        fields
    }
}
