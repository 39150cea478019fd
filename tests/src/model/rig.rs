//! One vCPU's memory and a core that runs it, for tests of the model and of drivers on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::bus::PhysicalBus;
use super::capability::Capability;
use super::controls::{exit, pin, primary, secondary, tertiary};
use super::core::Core;
use super::entry::{Entered, EntryFailure};
use super::field;
use super::guest::Window;
use super::knobs::Knobs;
use super::memory::Memory;
use super::page::offset;
use super::vmcs::VmcsRegion;

/// The memory of one vCPU, at the fixed physical addresses of this type's constants.
#[derive(Debug)]
pub struct Storage {
    /// The virtual-APIC page.
    pub page: [AtomicU32; 1024],
    /// The APIC-access page, which should stay untouched.
    pub access_page: [AtomicU32; 1024],
    /// The posted-interrupt descriptor.
    pub descriptor: [AtomicU64; 8],
    /// A PID-pointer table of 16 entries.
    pub pid_pointers: [AtomicU64; 16],
}

impl Storage {
    /// Address of the virtual-APIC page.
    pub const PAGE: u64 = 0x10_0000;
    /// Address of the APIC-access page.
    pub const ACCESS_PAGE: u64 = 0x10_1000;
    /// Address of the MSR bitmap.
    pub const MSR_BITMAP: u64 = 0x10_2000;
    /// Address of the PID-pointer table.
    pub const PID_POINTERS: u64 = 0x10_3000;
    /// Address of the descriptor: aligned to 64 bytes and no more.
    pub const DESCRIPTOR: u64 = 0x10_4040;

    /// Memory full of zeros, except that the PID-pointer table's entry 0 names the descriptor.
    #[must_use]
    pub fn new() -> Box<Self> {
        let storage = Box::new(Storage {
            page: [const { AtomicU32::new(0) }; 1024],
            access_page: [const { AtomicU32::new(0) }; 1024],
            descriptor: [const { AtomicU64::new(0) }; 8],
            pid_pointers: [const { AtomicU64::new(0) }; 16],
        });
        storage.pid_pointers[0].store(Self::DESCRIPTOR | 1, SeqCst);
        storage
    }

    /// The page's word at a byte offset.
    pub fn word(&self, offset: u32) -> u32 {
        self.page[offset as usize / 4].load(SeqCst)
    }

    /// Sets the page's word at a byte offset.
    pub fn set_word(&self, offset: u32, value: u32) {
        self.page[offset as usize / 4].store(value, SeqCst);
    }

    /// The vectors set in VIRR, ascending.
    pub fn irr(&self) -> Vec<u8> {
        self.vectors(offset::VIRR)
    }

    /// The vectors set in VISR, ascending.
    pub fn isr(&self) -> Vec<u8> {
        self.vectors(offset::VISR)
    }

    /// Sets a vector in VIRR.
    pub fn request(&self, vector: u8) {
        self.page[offset::VIRR as usize / 4 + usize::from(vector / 32) * 4]
            .fetch_or(1 << (vector % 32), SeqCst);
    }

    /// Sets a vector in VISR.
    pub fn service(&self, vector: u8) {
        self.page[offset::VISR as usize / 4 + usize::from(vector / 32) * 4]
            .fetch_or(1 << (vector % 32), SeqCst);
    }

    /// Posts a vector as software does: PIR, then ON. Returns whether a notification has to be sent.
    pub fn post(&self, vector: u8) -> bool {
        self.descriptor[usize::from(vector / 64)].fetch_or(1 << (vector % 64), SeqCst);
        self.descriptor[4].fetch_or(1, SeqCst) & 1 == 0
    }

    fn vectors(&self, register: u32) -> Vec<u8> {
        let is_set = |vector: &u8| {
            self.word(register + u32::from(vector / 32) * 0x10) >> (vector % 32) & 1 != 0
        };
        (0..=255).filter(is_set).collect()
    }
}

/// Which controls are 1. Those that a control needs are not added by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are the manual's, shortened")]
pub struct Setup {
    pub tpr_shadow: bool,
    pub apic_accesses: bool,
    pub x2apic: bool,
    pub register_virtualization: bool,
    pub delivery: bool,
    pub posted: bool,
    pub ipi: bool,
}

impl Setup {
    /// No APIC virtualization.
    pub const NONE: Self = Setup {
        tpr_shadow: false,
        apic_accesses: false,
        x2apic: false,
        register_virtualization: false,
        delivery: false,
        posted: false,
        ipi: false,
    };
    /// "Virtualize APIC accesses" and the TPR shadow.
    pub const FLEX_PRIORITY: Self = Setup { tpr_shadow: true, apic_accesses: true, ..Self::NONE };
    /// Register virtualization for the memory-mapped APIC, without virtual-interrupt delivery.
    pub const REGISTERS: Self = Setup { register_virtualization: true, ..Self::FLEX_PRIORITY };
    /// Register virtualization and virtual-interrupt delivery for the memory-mapped APIC.
    pub const DELIVERY: Self = Setup { delivery: true, ..Self::REGISTERS };
    /// The same with posted interrupts.
    pub const POSTED: Self = Setup { posted: true, ..Self::DELIVERY };
    /// The same with IPI virtualization.
    pub const IPI: Self = Setup { ipi: true, ..Self::POSTED };

    /// The same controls for x2APIC mode instead of the memory-mapped APIC.
    #[must_use]
    pub const fn in_x2apic(self) -> Self {
        Setup { apic_accesses: false, x2apic: true, ..self }
    }

    /// Writes the controls and all addresses to a VMCS.
    pub fn program(self, vmcs: &mut VmcsRegion) {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        vmcs.set_bits(
            field::PIN_BASED,
            pin::EXTERNAL_INTERRUPT_EXITING | bit(self.posted, pin::POSTED_INTERRUPTS),
        );
        vmcs.set_bits(
            field::PRIMARY,
            primary::SECONDARY
                | primary::MSR_BITMAPS
                | bit(self.tpr_shadow, primary::TPR_SHADOW)
                | bit(self.ipi, primary::TERTIARY),
        );
        vmcs.set_bits(
            field::SECONDARY,
            bit(self.apic_accesses, secondary::VIRTUALIZE_APIC_ACCESSES)
                | bit(self.x2apic, secondary::VIRTUALIZE_X2APIC)
                | bit(self.register_virtualization, secondary::APIC_REGISTER_VIRTUALIZATION)
                | bit(self.delivery, secondary::VIRTUAL_INTERRUPT_DELIVERY),
        );
        vmcs.set(field::TERTIARY, if self.ipi { tertiary::IPI_VIRTUALIZATION } else { 0 });
        vmcs.set_bits(field::VM_EXIT_CONTROLS, exit::ACKNOWLEDGE_INTERRUPT);
        vmcs.set(field::VIRTUAL_APIC_ADDRESS, Storage::PAGE);
        vmcs.set(field::APIC_ACCESS_ADDRESS, Storage::ACCESS_PAGE);
        vmcs.set(field::MSR_BITMAP_ADDRESS, Storage::MSR_BITMAP);
        vmcs.set(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, Storage::DESCRIPTOR);
        vmcs.set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, Rig::NOTIFICATION_VECTOR.into());
        vmcs.set(field::PID_POINTER_TABLE_ADDRESS, Storage::PID_POINTERS);
        vmcs.set(field::LAST_PID_POINTER_INDEX, 15);
    }
}

/// A core whose current VMCS is programmed for a [`Storage`], in root operation.
#[derive(Debug)]
pub struct Rig<'m> {
    /// The core.
    pub core: Core<'m>,
    /// The vCPU's memory.
    pub storage: &'m Storage,
    /// The registry of physical memory.
    pub memory: Arc<Memory<'m>>,
    /// The interrupts that the core sent.
    pub bus: Arc<PhysicalBus>,
}

impl<'m> Rig<'m> {
    /// The posted-interrupt notification vector.
    pub const NOTIFICATION_VECTOR: u8 = 0xf2;

    /// A core with every feature, an MSR bitmap that intercepts nothing, and the given controls.
    pub fn new(storage: &'m Storage, setup: Setup, knobs: Knobs) -> Self {
        let memory = Arc::new(Memory::new());
        memory.add_dwords(Storage::PAGE, &storage.page);
        memory.add_dwords(Storage::ACCESS_PAGE, &storage.access_page);
        memory.add_bytes(Storage::MSR_BITMAP, &[0; 4096]);
        memory.add_qwords(Storage::PID_POINTERS, &storage.pid_pointers);
        memory.add_qwords(Storage::DESCRIPTOR, &storage.descriptor);
        let bus = Arc::new(PhysicalBus::new());
        let capability = Capability::full();
        let mut vmcs = VmcsRegion::with_default_controls(capability);
        setup.program(&mut vmcs);
        let mut core = Core::new(0, memory.clone(), bus.clone(), capability, knobs);
        core.vmptrld(vmcs);
        Rig { core, storage, memory, bus }
    }

    /// The same, already in the guest.
    ///
    /// # Panics
    /// If the processor refuses the controls, or exits at once.
    #[must_use]
    pub fn running(storage: &'m Storage, setup: Setup) -> Self {
        let mut rig = Self::new(storage, setup, Knobs::default());
        rig.enter();
        rig
    }

    /// Enters the guest, which must succeed and run.
    ///
    /// # Panics
    /// If the processor refuses the controls, or exits at once.
    pub fn enter(&mut self) {
        let entered = self.core.vm_entry().expect("consistent controls");
        assert_eq!(entered.exit, None, "an exit before the first instruction");
    }

    /// Tries to enter the guest.
    ///
    /// # Errors
    /// Those of [`Core::vm_entry`].
    pub fn try_enter(&mut self) -> Result<Entered, EntryFailure> {
        self.core.vm_entry()
    }

    /// The current VMCS.
    pub fn vmcs(&mut self) -> &mut VmcsRegion {
        self.core.vmcs_mut().expect("the rig keeps a VMCS current")
    }

    /// Sets RVI and SVI for the next entry.
    pub fn set_interrupt_status(&mut self, rvi: u8, svi: u8) {
        self.vmcs().set(field::GUEST_INTERRUPT_STATUS, u64::from(svi) << 8 | u64::from(rvi));
    }

    /// RVI and SVI as the last VM exit saved them.
    pub fn saved_interrupt_status(&mut self) -> (u8, u8) {
        let status = self.vmcs().get(field::GUEST_INTERRUPT_STATUS);
        (status as u8, (status >> 8) as u8)
    }

    /// Maps the guest's APIC window to the virtual-APIC page itself: stores land there with no exit.
    pub fn map_window_to_page(&mut self) {
        self.core.window = Window::Memory(Storage::PAGE);
    }

    /// Leaves the guest by VMCALL.
    pub fn leave(&mut self) {
        assert!(self.core.vmcall().exit().is_some());
    }
}
