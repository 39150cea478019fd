//! The driver against a VMCB, tables and pages in memory, with nobody to run the guest.

mod addressing;
mod entries;
mod every_id;
mod every_inhibit;
mod exits;
mod inhibits;
mod iommu;
mod lifecycle;
mod races;
mod settled;

use std::boxed::Box;
use std::vec::Vec;

use vlapic_core::{ApicPage, Entry, EntryInput, Next, Profile, Register, Slot, Vm};
use vlapic_hal::fake::VirtualIsPhysical;
use vlapic_hal::{PhysAddr, Translate};

use crate::{
    Backing, Capabilities, Exit, Face, Host, IrteCell, LogicalPage, MsrPermissions, PhysicalPage,
    Resources, Route, Shared, Storage, Vcpu, Vmcb, VmcbPage, Wanted, Window,
};

pub(crate) const CAPS: Capabilities = Capabilities {
    avic: true,
    x2avic: true,
    x2avic_extended: true,
    extended_lvt: true,
    nested_paging: true,
    vmcb_clean: true,
    next_rip: true,
    vgif: true,
    vnmi: false,
    idle_hlt: false,
    host_x2apic: true,
    erratum_1235: false,
    snp_writes_in_use_pages: false,
    address_bits: 52,
};

/// A VM whose memory is never given back.
pub(crate) struct Rig {
    pub(crate) shared: &'static Shared<'static>,
    pub(crate) vcpus: Vec<Vcpu<'static>>,
    pub(crate) vmcbs: Vec<VmcbPage>,
    pub(crate) maps: Vec<&'static MsrPermissions>,
    pub(crate) window: &'static Window,
    pub(crate) irtes: &'static [IrteCell],
}

pub(crate) struct Options {
    pub(crate) ids: Vec<u32>,
    pub(crate) profile: Profile,
    pub(crate) caps: Capabilities,
    pub(crate) host: Host,
    pub(crate) wanted: Wanted,
    pub(crate) table_pages: usize,
}

impl Options {
    pub(crate) fn vcpus(count: u32) -> Self {
        Self {
            ids: (0..count).collect(),
            profile: Profile::amd(),
            caps: CAPS,
            host: Host::new(),
            wanted: Wanted::ALL,
            table_pages: 1,
        }
    }

    pub(crate) fn build(self) -> Rig {
        let slot = |&id: &u32| {
            let page: &'static ApicPage = Box::leak(Box::new(ApicPage::new()));
            Slot::new(page, id, self.profile, Backing::new())
        };
        let slots: &'static [_] = Vec::leak(self.ids.iter().map(slot).collect());
        let pages = (0..self.table_pages).map(|_| PhysicalPage::new());
        let irtes: &'static [IrteCell] = Vec::leak((0..4).map(|_| IrteCell::new()).collect());
        let storage = Storage {
            physical: Vec::leak(pages.collect()),
            logical: Box::leak(Box::new(LogicalPage::new())),
            routes: Vec::leak(irtes.iter().map(Route::new).collect()),
        };
        let vm = Vm::new(slots).unwrap();
        let shared: &'static Shared<'static> =
            Box::leak(Box::new(Shared::new(vm, storage, &VirtualIsPhysical).unwrap()));
        let window: &'static Window = Box::leak(Box::new(Window::new()));
        let mut rig =
            Rig { shared, vcpus: Vec::new(), vmcbs: Vec::new(), maps: Vec::new(), window, irtes };
        for index in 0..slots.len() {
            let mut vcpu = Vcpu::new(shared, index, index == 0).unwrap();
            let mut vmcb = VmcbPage::new();
            vmcb.store(0x090, 1);
            let msr_permissions: &'static MsrPermissions =
                Box::leak(Box::new(MsrPermissions::new()));
            let resources =
                Resources { msr_permissions, window, private_asid: false, host: self.host };
            vcpu.configure(&mut vmcb, &self.caps, self.wanted, resources);
            rig.vcpus.push(vcpu);
            rig.vmcbs.push(vmcb);
            rig.maps.push(msr_permissions);
        }
        rig
    }
}

pub(crate) const INPUT: EntryInput =
    EntryInput { now: 0, cpu: 0x10, interruptible: true, injecting: false };

impl Rig {
    pub(crate) fn page(&self, index: usize) -> &'static ApicPage {
        self.shared.vm().slots()[index].page()
    }

    pub(crate) fn slot(&self, index: usize) -> &'static Slot<'static, Backing> {
        &self.shared.vm().slots()[index]
    }

    /// Software-enables the APIC of vCPU `index`.
    pub(crate) fn enable(&self, index: usize) {
        self.page(index).write(Register::Svr, 0x1FF);
    }

    /// The guest of vCPU `index` goes to x2APIC mode.
    pub(crate) fn enter_x2apic(&mut self, index: usize) {
        let base = self.slot(index).base().bits() | 1 << 10;
        let effect = self.vcpus[index].apic_mut().write_msr(0x1B, base, 0);
        assert!(effect.is_ok());
    }

    /// Enters on CPU `0x10 + index`, whatever has to be done first.
    pub(crate) fn enter(&mut self, index: usize) -> Face {
        let input = EntryInput { cpu: 0x10 + index as u32, ..INPUT };
        for _ in 0..4 {
            match self.entry(index, input).next {
                Next::UnmapWindow => self.window.unmapped(),
                Next::KickOthers => {}
                _ => return Face::of(&self.vmcbs[index]),
            }
        }
        panic!("no way in");
    }

    /// What the driver says of an entry.
    pub(crate) fn entry(&mut self, index: usize, input: EntryInput) -> Entry {
        let Ok(entry) = self.vcpus[index].before_entry(&mut self.vmcbs[index], input);
        entry
    }

    pub(crate) fn exit(
        &mut self,
        index: usize,
        code: u64,
        info_1: u64,
        info_2: u64,
    ) -> vlapic_core::ExitOutcome {
        let exit = Exit { code, info_1, info_2 };
        self.vcpus[index].after_exit(&mut self.vmcbs[index], exit, 0)
    }

    /// The word of vCPU `index` in the physical table, without the page's address.
    pub(crate) fn running(&self, index: usize) -> Option<u16> {
        let id = self.slot(index).x2apic_id();
        let entry = self.shared.physical().entry(id);
        assert_eq!(Some(entry.backing_page()), address(self.page(index)));
        entry.is_running().then_some(entry.bits() as u16 & 0xFFF)
    }

    pub(crate) fn logical(&self, offset: u16) -> Option<u8> {
        self.shared.logical().entry(offset).guest_apic_id()
    }
}

pub(crate) fn address(page: &ApicPage) -> Option<PhysAddr> {
    VirtualIsPhysical.physical_address(page)
}
