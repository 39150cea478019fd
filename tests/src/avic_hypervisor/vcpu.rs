//! One vCPU as the hypervisor keeps it.

use avic::{Grant, Resources, Shared, Vcpu};
use vlapic_core::Event;

use super::{Config, Storage};
use crate::avic_model::{VmExit, Vmcb, control, field, intercept};

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It runs or wants to.
    Ready,
    /// It executed HLT, the driver has agreed that it may sleep, and it is about to.
    Parking,
    /// It sleeps.
    Blocked,
    /// It is still in HLT and was told to look for what may end that.
    Woken,
    /// It waits for INIT and SIPI.
    WaitsForSipi,
}

/// A vCPU: the driver's part, the VMCB, and what the guest saw.
#[derive(Debug)]
pub struct VirtualCpu<'m> {
    /// The driver.
    pub driver: Vcpu<'m>,
    /// What the driver granted.
    pub grant: Grant,
    /// RFLAGS.IF of the guest.
    pub interrupt_flag: bool,
    /// What it is doing.
    pub run: Run,
    /// Events other than vectors that it took.
    pub events: Vec<Event>,
    /// The last exit.
    pub last_exit: Option<VmExit>,
    /// The CPU it is on.
    pub cpu: Option<usize>,
    pub(super) taken: Vec<u8>,
    pub(super) broadcasts: Vec<u8>,
    pub(super) exits: u64,
    /// The VMCB while no guest runs with it.
    pub(super) vmcb: Option<Vmcb>,
    /// Somebody wants it to go through its entry work before it runs on.
    pub(super) kicked: bool,
    /// What the driver has injected for an entry that was not made yet.
    pub(super) in_flight: Option<u8>,
    /// An NMI to inject.
    pub(super) injects_nmi: bool,
    /// When the driver wants it to exit.
    pub(super) exit_by: Option<u64>,
}

impl<'m> VirtualCpu<'m> {
    pub(super) fn new(
        storage: &'m Storage,
        shared: &'m Shared<'m>,
        config: &Config,
        index: usize,
    ) -> Self {
        let mut vmcb = prepared_vmcb(config, index);
        let mut driver = Vcpu::new(shared, index, index == 0).expect("a slot of the VM");
        driver.set_svr_writes(config.svr_writes);
        driver.apic_mut().bind_upcall(&storage.pending[index]);
        let resources = Resources {
            msr_permissions: storage.permissions(index),
            window: &storage.window,
            private_asid: config.private_asid || config.broken == super::Broken::DeniesSharedAsid,
            host: config.host,
        };
        let capabilities = avic::Capabilities::detect(&config.processor);
        let grant = driver.configure(&mut View(&mut vmcb), &capabilities, config.wanted, resources);
        Self {
            driver,
            grant,
            interrupt_flag: true,
            run: if index == 0 { Run::Ready } else { Run::WaitsForSipi },
            events: Vec::new(),
            last_exit: None,
            cpu: None,
            taken: Vec::new(),
            broadcasts: Vec::new(),
            exits: 0,
            vmcb: Some(vmcb),
            kicked: false,
            in_flight: None,
            injects_nmi: false,
            exit_by: None,
        }
    }

    /// Begins a new list of vectors taken.
    pub fn forget_taken(&mut self) {
        self.taken.clear();
    }
}

/// N_CR3 of the VM.
pub(super) const NESTED_CR3: u64 = 0x20_0000;

/// A VMCB as a hypervisor has it before the driver comes: physical interrupts, NMIs, HLT and MSR accesses exit.
fn prepared_vmcb(config: &Config, index: usize) -> Vmcb {
    let mut vmcb = Vmcb::new(0x4000_0000 + 0x1000 * index as u64);
    let intercepts = intercept::INTR | intercept::NMI | intercept::HLT | intercept::MSR_PROT;
    vmcb.set32(field::INTERCEPTS_3, intercepts);
    vmcb.set32(field::INTERCEPTS_4, intercept::VMRUN | intercept::VMMCALL);
    vmcb.set32(field::ASID, if config.private_asid { 1 + index as u32 } else { 1 });
    vmcb.set64(field::NESTED_CONTROL, 1);
    vmcb.set64(field::NESTED_CR3, NESTED_CR3);
    vmcb.set64(field::MSRPM_BASE, Storage::permissions_address(index));
    vmcb.set64(field::VIRTUAL_INTERRUPT, control::V_GIF);
    vmcb
}

/// The model's VMCB as the driver takes it.
#[derive(Debug)]
pub(super) struct View<'v>(pub(super) &'v mut Vmcb);

impl avic::Vmcb for View<'_> {
    fn load(&self, offset: u16) -> u64 {
        self.0.get64(offset.into())
    }

    fn store(&mut self, offset: u16, value: u64) {
        self.0.set64(offset.into(), value);
    }
}
