//! A VM's memory and a machine that runs it, for tests of the model and of drivers on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::model::Memory;

use super::capability::Capability;
use super::checks::Violation;
use super::core::Entered;
use super::knobs::Knobs;
use super::machine::Machine;
use super::nested::Mapping;
use super::page::offset;
use super::vmcb::{Vmcb, control, field, intercept};

/// The backing page of one vCPU.
#[derive(Debug)]
pub struct BackingPage {
    words: [AtomicU32; 1024],
}

impl BackingPage {
    fn new(id: usize) -> Self {
        let page = BackingPage { words: [const { AtomicU32::new(0) }; 1024] };
        page.set_word(0x20, (id as u32) << 24);
        page.set_word(offset::DFR, u32::MAX);
        page
    }

    /// The page as memory.
    #[must_use]
    pub fn words(&self) -> &[AtomicU32; 1024] {
        &self.words
    }

    /// The word at a byte offset.
    #[must_use]
    pub fn word(&self, offset: u32) -> u32 {
        self.words[offset as usize / 4].load(SeqCst)
    }

    /// Sets the word at a byte offset.
    pub fn set_word(&self, offset: u32, value: u32) {
        self.words[offset as usize / 4].store(value, SeqCst);
    }

    /// Sets a vector in IRR, as software and the IOMMU do: one locked OR.
    pub fn request(&self, vector: u8) {
        self.set_vector(offset::IRR, vector);
    }

    /// Sets a vector in ISR.
    pub fn service(&self, vector: u8) {
        self.set_vector(offset::ISR, vector);
    }

    /// Marks a vector level-triggered.
    pub fn mark_level(&self, vector: u8) {
        self.set_vector(offset::TMR, vector);
    }

    /// The vectors in IRR, ascending.
    #[must_use]
    pub fn irr(&self) -> Vec<u8> {
        self.vectors(offset::IRR)
    }

    /// The vectors in ISR, ascending.
    #[must_use]
    pub fn isr(&self) -> Vec<u8> {
        self.vectors(offset::ISR)
    }

    fn set_vector(&self, register: u32, vector: u8) {
        let word = register as usize / 4 + usize::from(vector / 32) * 4;
        self.words[word].fetch_or(1 << (vector % 32), SeqCst);
    }

    fn vectors(&self, register: u32) -> Vec<u8> {
        let is_set = |vector: &u8| {
            self.word(register + u32::from(vector / 32) * 0x10) >> (vector % 32) & 1 != 0
        };
        (0..=255).filter(is_set).collect()
    }
}

/// The memory of one VM, at fixed physical addresses: a backing page a vCPU, both tables, an MSR permission map that
/// intercepts nothing, the page behind the APIC window, interrupt-remapping entries and an IOMMU log.
#[derive(Debug)]
pub struct Storage {
    pages: Vec<BackingPage>,
    window: [AtomicU32; 1024],
    logical: [AtomicU32; 1024],
    physical: [AtomicU64; 4096],
    remapping: [AtomicU64; 64],
    log: [AtomicU64; 512],
}

impl Storage {
    /// Address of the backing page of vCPU 0; the others follow.
    pub const PAGES: u64 = 0x1000_0000;
    /// Address of the page behind the APIC window, which should stay untouched.
    pub const WINDOW: u64 = 0x10_0000;
    /// Address of the logical table.
    pub const LOGICAL: u64 = 0x10_1000;
    /// Address of the MSR permission map.
    pub const MSRPM: u64 = 0x10_2000;
    /// Address of the physical table, eight pages.
    pub const PHYSICAL: u64 = 0x11_0000;
    /// Address of the interrupt-remapping entries.
    pub const REMAPPING: u64 = 0x12_0000;
    /// Address of the IOMMU log.
    pub const LOG: u64 = 0x12_1000;

    /// Memory of a VM: pages with ID and DFR set, valid entries of vCPUs that do not run, no logical entry.
    #[must_use]
    pub fn new(vcpus: usize) -> Box<Self> {
        let storage = Box::new(Storage {
            pages: (0..vcpus).map(BackingPage::new).collect(),
            window: [const { AtomicU32::new(0) }; 1024],
            logical: [const { AtomicU32::new(0) }; 1024],
            physical: [const { AtomicU64::new(0) }; 4096],
            remapping: [const { AtomicU64::new(0) }; 64],
            log: [const { AtomicU64::new(0) }; 512],
        });
        for id in 0..vcpus {
            storage.set_physical(id, 1 << 63 | Self::page_address(id));
        }
        storage
    }

    /// The physical address of a vCPU's backing page.
    #[must_use]
    pub fn page_address(vcpu: usize) -> u64 {
        Self::PAGES + 0x1000 * vcpu as u64
    }

    /// The backing page of a vCPU.
    #[must_use]
    pub fn vcpu(&self, vcpu: usize) -> &BackingPage {
        &self.pages[vcpu]
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.pages.len()
    }

    /// Writes an entry of the physical table.
    pub fn set_physical(&self, index: usize, entry: u64) {
        self.physical[index].store(entry, SeqCst);
    }

    /// Marks a vCPU as assigned to a core, or to none; the core's ID stays in the entry.
    pub fn set_running(&self, vcpu: usize, core: Option<u32>) {
        let entry = self.physical[vcpu].load(SeqCst) & !(1 << 62);
        let entry = match core {
            Some(core) => entry & !0xfff | u64::from(core) | 1 << 62,
            None => entry,
        };
        self.set_physical(vcpu, entry);
    }

    /// Writes an entry of the logical table.
    pub fn set_logical(&self, number: usize, entry: u32) {
        self.logical[number].store(entry, SeqCst);
    }

    /// Writes an interrupt-remapping entry and returns its address.
    pub fn set_remapping(&self, number: usize, low: u64, high: u64) -> u64 {
        self.remapping[number * 2].store(low, SeqCst);
        self.remapping[number * 2 + 1].store(high, SeqCst);
        Self::REMAPPING + 16 * number as u64
    }

    /// An entry of the IOMMU log.
    #[must_use]
    pub fn log(&self, number: usize) -> u64 {
        self.log[number].load(SeqCst)
    }

    /// Whether a write reached the page behind the APIC window.
    #[must_use]
    pub fn window_word(&self, offset: u32) -> u32 {
        self.window[offset as usize / 4].load(SeqCst)
    }

    /// Shows all of it to a model.
    pub fn register<'m>(&'m self, memory: &Memory<'m>) {
        for (vcpu, page) in self.pages.iter().enumerate() {
            memory.add_dwords(Self::page_address(vcpu), page.words());
        }
        memory.add_dwords(Self::WINDOW, &self.window);
        memory.add_dwords(Self::LOGICAL, &self.logical);
        memory.add_bytes(Self::MSRPM, &[0; 8192]);
        memory.add_qwords(Self::PHYSICAL, &self.physical);
        memory.add_qwords(Self::REMAPPING, &self.remapping);
        memory.add_qwords(Self::LOG, &self.log);
    }
}

/// A machine with the memory of one VM.
#[derive(Debug)]
pub struct Rig<'m> {
    /// The machine.
    pub machine: Machine<'m>,
    /// The VM's memory.
    pub storage: &'m Storage,
    /// Whether VMCBs are made for x2AVIC.
    pub x2avic: bool,
}

impl<'m> Rig<'m> {
    /// The guest-physical address of the APIC window.
    pub const APIC_BASE: u64 = 0xfee0_0000;
    /// N_CR3 of the VM.
    pub const NESTED_CR3: u64 = 0x20_0000;
    /// ASID of the VM.
    pub const ASID: u32 = 1;

    /// A machine with every feature and so many cores, whose guests use AVIC.
    #[must_use]
    pub fn new(storage: &'m Storage, cores: u32, knobs: Knobs) -> Self {
        Self::with(storage, cores, Capability::full(), knobs, 0)
    }

    /// The same, whose guests use x2AVIC.
    #[must_use]
    pub fn x2avic(storage: &'m Storage, cores: u32, knobs: Knobs) -> Self {
        Rig { x2avic: true, ..Self::new(storage, cores, knobs) }
    }

    /// A machine of any kind.
    #[must_use]
    pub fn with(
        storage: &'m Storage,
        cores: u32,
        capability: Capability,
        knobs: Knobs,
        seed: u64,
    ) -> Self {
        let memory = Arc::new(Memory::new());
        storage.register(&memory);
        let machine = Machine::new(cores, memory, capability, knobs, seed);
        let mapping = Mapping { page: Storage::WINDOW, writable: true };
        machine.nested().map(Self::NESTED_CR3, Self::APIC_BASE, mapping);
        Rig { machine, storage, x2avic: false }
    }

    /// A VMCB of a vCPU: AVIC or x2AVIC on, nested paging, physical interrupts, NMIs and VMMCALL intercepted, nothing
    /// clean, the TLB flushed.
    #[must_use]
    pub fn vmcb(&self, vcpu: usize) -> Vmcb {
        let mut vmcb = Vmcb::new(0x4000_0000 + 0x1000 * vcpu as u64);
        let x2avic = if self.x2avic { control::X2AVIC } else { 0 };
        let max_index = if self.x2avic { 511 } else { 254 };
        vmcb.set64(
            field::VIRTUAL_INTERRUPT,
            control::AVIC | x2avic | control::V_INTR_MASKING | self.v_tpr(vcpu),
        );
        vmcb.set32(field::INTERCEPTS_3, intercept::INTR | intercept::NMI | intercept::MSR_PROT);
        vmcb.set32(field::INTERCEPTS_4, intercept::VMRUN | intercept::VMMCALL);
        vmcb.set32(field::ASID, Self::ASID);
        vmcb.set32(field::TLB_CONTROL, 3);
        vmcb.set64(field::NESTED_CONTROL, 1);
        vmcb.set64(field::NESTED_CR3, Self::NESTED_CR3);
        vmcb.set64(field::MSRPM_BASE, Storage::MSRPM);
        vmcb.set64(field::APIC_BAR, Self::APIC_BASE);
        vmcb.set64(field::BACKING_PAGE, Storage::page_address(vcpu));
        vmcb.set64(field::LOGICAL_TABLE, Storage::LOGICAL);
        vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | max_index);
        vmcb
    }

    fn v_tpr(&self, vcpu: usize) -> u64 {
        u64::from(self.storage.vcpu(vcpu).word(offset::TPR)) >> 4 & control::V_TPR
    }

    /// Runs a vCPU on a core with a fresh VMCB, and marks it as running there.
    ///
    /// # Panics
    /// If VMRUN refuses the VMCB.
    pub fn enter(&mut self, core: usize, vcpu: usize) {
        self.storage.set_running(vcpu, Some(core as u32));
        let vmcb = self.vmcb(vcpu);
        self.machine.cores[core].vmrun(vmcb).expect("a VMCB without fault");
    }

    /// Tries to run a VMCB on a core.
    ///
    /// # Errors
    /// Those of [`Core::vmrun`](super::Core::vmrun).
    pub fn try_enter(&mut self, core: usize, vmcb: Vmcb) -> Result<Entered, Vec<Violation>> {
        self.machine.cores[core].vmrun(vmcb)
    }

    /// Leaves the guest on a core by VMMCALL and takes the VMCB.
    ///
    /// # Panics
    /// If no guest runs there.
    pub fn leave(&mut self, core: usize) -> Vmcb {
        let core = &mut self.machine.cores[core];
        let outcome = core.run(super::operation::GuestOp::Vmmcall);
        assert!(outcome.exit().is_some(), "the rig intercepts VMMCALL");
        core.take_vmcb().expect("an exit leaves a VMCB")
    }
}
