//! A processor with SVM: the model of AVIC.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};

use avic::{
    Backing, Exit, Feature, Host, LogicalPage, MsrPermissions, PhysicalPage, Resources, Shared,
    Storage, Vcpu,
};
use vlapic_core::{ApicPage, Entry, Grant, Notify, Profile, Slot, Vm};
use vlapic_tests::avic_model::{
    Capability, GuestOp, Knobs, Machine, Mapping, Outcome, Vmcb, code, control, field, intercept,
};
use vlapic_tests::model::Memory;

use crate::host::{Class, Hypervisor, INJECTED_NMI, Processor, What};
use crate::script::{Guest, NMI, Seen, Step};

/// Processors, and what each is granted.
pub(crate) const LEVELS: [(Capability, &str); 4] = [
    (Capability::svm(), "none"),
    (Capability::avic(), "avic,"),
    (Capability::x2avic(), "avic,x2avic,"),
    (Capability::full(), "avic,x2avic,extended-ids,"),
];

const WINDOW: u64 = 0xfee0_0000;
const BEHIND_WINDOW: u64 = 0x10_0000;
const LOGICAL: u64 = 0x10_1000;
const PHYSICAL: u64 = 0x11_0000;
const NESTED_CR3: u64 = 0x20_0000;
const PAGES: u64 = 0x1000_0000;
const PERMISSIONS: u64 = 0x3000_0000;
const VMCB: u64 = 0x4000_0000;

/// The model's VMCB as the driver takes it.
struct Control(Vmcb);

impl avic::Vmcb for Control {
    fn load(&self, offset: u16) -> u64 {
        self.0.get64(offset.into())
    }

    fn store(&mut self, offset: u16, value: u64) {
        self.0.set64(offset.into(), value);
    }
}

struct Svm<'m> {
    machine: Machine<'m>,
    capability: Capability,
    control: Control,
    permissions: &'m MsrPermissions,
    window: &'m avic::Window,
}

impl Svm<'_> {
    fn what(&mut self, outcome: Outcome) -> What<Exit> {
        match outcome {
            Outcome::Exit(_) => {
                let vmcb = self.machine.cores[0].take_vmcb().expect("an exit leaves a VMCB");
                self.control = Control(vmcb);
                What::Exit(Exit::of(&self.control))
            }
            Outcome::Delivered(vector) => What::Taken(vector),
            Outcome::DeliveredNmi => What::Taken(NMI),
            Outcome::Value(value) => What::Value(value),
            Outcome::GeneralProtection => unreachable!("no instruction here faults"),
            _ => What::Nothing,
        }
    }
}

impl<'s> Processor<'s, Control, Vcpu<'s>> for Svm<'s> {
    type Probed = Capability;

    fn probed(&self) -> &Capability {
        &self.capability
    }

    fn controls(&mut self) -> &mut Control {
        &mut self.control
    }

    fn resources(&self) -> Resources<'s> {
        Resources {
            msr_permissions: self.permissions,
            window: self.window,
            private_asid: true,
            host: Host::new(),
        }
    }

    fn granted(&mut self, _: &Grant<Feature>) {}

    fn interruptible(&mut self) -> bool {
        let shadow = self.control.0.get64(field::INTERRUPT_SHADOW) & 1 != 0;
        self.control.0.get64(field::RFLAGS) >> 9 & 1 != 0 && !shadow
    }

    fn injecting(&mut self) -> bool {
        self.control.0.get64(field::EVENT_INJECTION) >> 31 & 1 != 0
    }

    fn inject_nmi(&mut self) {
        self.control.0.set64(field::EVENT_INJECTION, INJECTED_NMI);
    }

    fn enter(&mut self, _: &Entry) -> (Option<u8>, Option<Exit>) {
        let vmcb = std::mem::replace(&mut self.control.0, Vmcb::new(VMCB));
        let entered = self.machine.cores[0].vmrun(vmcb).expect("a VMCB that is accepted");
        (entered.injected.map(|event| event.vector), None)
    }

    fn boundary(&mut self) -> What<Exit> {
        let outcome = self.machine.cores[0].poll();
        self.what(outcome)
    }

    fn execute(&mut self, step: Step) -> What<Exit> {
        let at = |offset| WINDOW + u64::from(offset);
        let outcome = self.machine.cores[0].run(match step {
            Step::Store(offset, value) => {
                GuestOp::Write { address: at(offset), width: 4, value: value.into() }
            }
            Step::Load(offset) => GuestOp::Read { address: at(offset), width: 4 },
            Step::WriteMsr(msr, value) => GuestOp::Wrmsr { msr, value },
            Step::ReadMsr(msr) => GuestOp::Rdmsr { msr },
            Step::InterruptsOn => GuestOp::Iret,
            Step::Halt(_) => GuestOp::Hlt,
            Step::Finish => GuestOp::Vmmcall,
            other => unreachable!("{other:?} is no instruction"),
        });
        self.what(outcome)
    }

    fn raise(&mut self, vector: u8) {
        self.machine.cores[0].physical_interrupt(vector);
    }

    fn tell(&mut self, notify: Notify) {
        match notify {
            Notify::Doorbell { destination: 0 } => self.machine.cores[0].doorbell(),
            other => unreachable!("{other:?} on this processor"),
        }
    }

    fn take_interrupts(&mut self) {
        while self.machine.cores[0].host_interrupt().is_some() {}
    }

    fn why(&mut self, exit: &Exit) -> Option<Class> {
        Some(match exit.code {
            // The first access maps the window, if it may be, and is made again.
            code::NESTED_PAGE_FAULT if !self.window.is_mapped() && self.window.map() => {
                let mapping = Mapping { page: BEHIND_WINDOW, writable: true };
                self.machine.nested().map(NESTED_CR3, WINDOW, mapping);
                return None;
            }
            code::NESTED_PAGE_FAULT | code::MSR => Class::Access,
            code::HLT => Class::Halt,
            code::VMMCALL => Class::Finish,
            _ => Class::Other,
        })
    }

    fn unmap_window(&mut self) {
        self.machine.nested().unmap(NESTED_CR3, WINDOW);
        self.machine.cores[0].flush_tlb(None);
        self.window.unmapped();
    }
}

pub(crate) fn run(capability: Capability, program: Vec<Step>) -> (Seen, String) {
    with_exits(capability, program).0
}

pub(crate) fn exits(capability: Capability, program: Vec<Step>) -> usize {
    with_exits(capability, program).1
}

fn with_exits(capability: Capability, program: Vec<Step>) -> ((Seen, String), usize) {
    let pages = [const { ApicPage::new() }; 2];
    let (permissions, window) = (MsrPermissions::new(), avic::Window::new());
    let (physical, logical) = (Box::new([PhysicalPage::new()]), Box::new(LogicalPage::new()));
    let behind_window = [const { AtomicU32::new(0) }; 1024];
    let pending = AtomicU8::new(0);

    let memory = Arc::new(Memory::new());
    for (index, page) in pages.iter().enumerate() {
        memory.add_dwords(PAGES + 0x1000 * index as u64, page.words());
    }
    memory.add_qwords(PERMISSIONS, permissions.words());
    memory.add_dwords(LOGICAL, logical.words());
    memory.add_qwords(PHYSICAL, physical[0].words());
    memory.add_dwords(BEHIND_WINDOW, &behind_window);

    let slots = [0, 1].map(|id| Slot::new(&pages[id], id as u32, Profile::amd(), Backing::new()));
    let vm = Vm::new(&slots).expect("IDs ascend");
    let tables = Storage { physical: &*physical, logical: &logical, routes: &[] };
    let shared = Shared::new(vm, tables, &*memory).expect("memory with addresses");

    let mut vmcb = Vmcb::new(VMCB);
    let intercepts = intercept::INTR | intercept::NMI | intercept::HLT | intercept::MSR_PROT;
    vmcb.set32(field::INTERCEPTS_3, intercepts);
    vmcb.set32(field::INTERCEPTS_4, intercept::VMRUN | intercept::VMMCALL);
    vmcb.set32(field::ASID, 1);
    vmcb.set64(field::NESTED_CONTROL, 1);
    vmcb.set64(field::NESTED_CR3, NESTED_CR3);
    vmcb.set64(field::MSRPM_BASE, PERMISSIONS);
    vmcb.set64(field::VIRTUAL_INTERRUPT, control::V_GIF);
    let machine = Machine::new(1, memory.clone(), capability, Knobs::default(), 1);
    let svm = Svm {
        machine,
        capability,
        control: Control(vmcb),
        permissions: &permissions,
        window: &window,
    };

    let guest = Guest::new(&slots[0], &pending, program);
    let mut host = Hypervisor::new(svm, guest);
    let vcpu = Vcpu::new(&shared, 0, true).expect("a slot of the VM");
    crate::run(&mut host, vcpu, vm, 0, &pending).expect("it ends");
    assert_eq!(host.processor.machine.cores[0].leaks(), [], "MSRs of the host");
    ((host.guest.seen, host.grant), host.exits)
}
