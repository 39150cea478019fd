//! A processor with VT-x: the model of APICv.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};

use apicv::{
    Addresses, Exit, Feature, HostMode, MsrBitmap, NotificationVectors, PostedDescriptor, Posting,
    Vcpu,
};
use vlapic_core::{ApicPage, Entry, Grant, Notify, Profile, Slot, Vm};
use vlapic_hal::PhysAddr;
use vlapic_tests::model::{
    Capability, Core, ExitReason, Knobs, Level, Memory, Outcome, PhysicalBus, VmExit, VmcsRegion,
    Window, controls, field,
};

use crate::host::{Class, Hypervisor, INJECTED_NMI, Processor, What};
use crate::script::{Guest, Seen, Step};

/// Processors, and what each is granted.
pub(crate) const LEVELS: [(Level, &str); 7] = [
    (Level::Nothing, "none"),
    (Level::TprShadow, "tpr-shadow;"),
    (Level::ApicAccess, "tpr-shadow,apic-access;"),
    (Level::RegisterVirtualization, "tpr-shadow,apic-access,x2apic,register-virtualization;"),
    (
        Level::VirtualInterruptDelivery,
        "tpr-shadow,apic-access,x2apic,register-virtualization,virtual-interrupt-delivery;",
    ),
    (
        Level::PostedInterrupts,
        "tpr-shadow,apic-access,x2apic,register-virtualization,virtual-interrupt-delivery,\
         posted-interrupts;",
    ),
    (
        Level::IpiVirtualization,
        "tpr-shadow,apic-access,x2apic,register-virtualization,virtual-interrupt-delivery,\
         posted-interrupts,ipi-virtualization",
    ),
];

const NOTIFICATION: u8 = 0xf2;
const WAKEUP: u8 = 0xf3;

const PAGE: u64 = 0x1000;
const ACCESS_PAGE: u64 = 0x2000;
const BITMAP: u64 = 0x3000;
const DESCRIPTOR: u64 = 0x4000;
const PID_POINTERS: u64 = 0x5000;

struct VtX<'m> {
    core: Core<'m>,
    capability: Capability,
    bitmap: &'m MsrBitmap,
}

impl VtX<'_> {
    fn what(&mut self, outcome: Outcome) -> What<Exit> {
        match outcome {
            Outcome::Exit(exit) => What::Exit(self.exit(exit)),
            Outcome::Delivered(vector) => What::Taken(vector),
            Outcome::Value(value) => What::Value(value),
            Outcome::GeneralProtection => unreachable!("no instruction here faults"),
            _ => What::Nothing,
        }
    }

    fn exit(&mut self, exit: VmExit) -> Exit {
        // The exit has acknowledged the interrupt; its handler ends it.
        if exit.reason == ExitReason::ExternalInterrupt && exit.interruption_info >> 31 & 1 != 0 {
            self.core.physical.end_of_interrupt();
        }
        Exit { reason: exit.reason as u16, qualification: exit.qualification }
    }

    fn field(&self, encoding: u32) -> u64 {
        self.core.vmcs().expect("current").get(encoding)
    }
}

impl<'s> Processor<'s, Core<'s>, Vcpu<'s>> for VtX<'s> {
    type Probed = Capability;

    fn probed(&self) -> &Capability {
        &self.capability
    }

    fn controls(&mut self) -> &mut Core<'s> {
        &mut self.core
    }

    fn resources(&self) -> Addresses<'s> {
        Addresses {
            virtual_apic: Some(PhysAddr::new(PAGE)),
            apic_access: Some(PhysAddr::new(ACCESS_PAGE)),
            posted_interrupt_descriptor: Some(PhysAddr::new(DESCRIPTOR)),
            msr_bitmap: Some((self.bitmap, PhysAddr::new(BITMAP))),
            pid_pointer_table: Some((PhysAddr::new(PID_POINTERS), 0)),
        }
    }

    fn granted(&mut self, grant: &Grant<Feature>) {
        if !grant.features().contains(Feature::ApicAccess) {
            self.core.window = Window::NotPresent;
        }
    }

    fn interruptible(&mut self) -> bool {
        let blocked = self.field(field::GUEST_INTERRUPTIBILITY) & 3 != 0;
        self.field(field::GUEST_RFLAGS) >> 9 & 1 != 0 && !blocked
    }

    fn injecting(&mut self) -> bool {
        self.field(field::ENTRY_INTERRUPTION_INFO) >> 31 != 0
    }

    fn inject_nmi(&mut self) {
        let vmcs = self.core.vmcs_mut().expect("current");
        vmcs.set(field::ENTRY_INTERRUPTION_INFO, INJECTED_NMI);
    }

    fn enter(&mut self, _: &Entry) -> (Option<u8>, Option<Exit>) {
        let entered = self.core.vm_entry().expect("controls that the processor accepts");
        (entered.injected, entered.exit.map(|exit| self.exit(exit)))
    }

    fn boundary(&mut self) -> What<Exit> {
        let outcome = self.core.poll();
        self.what(outcome)
    }

    fn execute(&mut self, step: Step) -> What<Exit> {
        let outcome = match step {
            Step::Store(offset, value) => self.core.mmio_write(offset.into(), 4, value.into()),
            Step::Load(offset) => self.core.mmio_read(offset.into(), 4),
            Step::WriteMsr(msr, value) => self.core.wrmsr(msr, value),
            Step::ReadMsr(msr) => self.core.rdmsr(msr),
            Step::InterruptsOn => self.core.set_interrupt_flag(true),
            Step::Halt(_) => self.core.hlt(),
            Step::Finish => self.core.vmcall(),
            other => unreachable!("{other:?} is no instruction"),
        };
        self.what(outcome)
    }

    fn raise(&mut self, vector: u8) {
        self.core.raise(vector);
    }

    fn tell(&mut self, notify: Notify) {
        match notify {
            Notify::Interrupt { vector, destination: 0 } => self.core.raise(vector),
            other => unreachable!("{other:?} on this processor"),
        }
    }

    fn take_interrupts(&mut self) {
        while self.core.host_interrupt().is_some() {
            self.core.physical.end_of_interrupt();
        }
    }

    fn why(&mut self, exit: &Exit) -> Option<Class> {
        const RDMSR: u16 = ExitReason::Rdmsr as u16;
        const WRMSR: u16 = ExitReason::Wrmsr as u16;
        const EPT_VIOLATION: u16 = ExitReason::EptViolation as u16;
        const HLT: u16 = ExitReason::Hlt as u16;
        const VMCALL: u16 = ExitReason::Vmcall as u16;
        Some(match exit.reason {
            RDMSR | WRMSR | EPT_VIOLATION => Class::Access,
            HLT => Class::Halt,
            VMCALL => Class::Finish,
            _ => Class::Other,
        })
    }

    fn unmap_window(&mut self) {
        unreachable!("VT-x does not ask for it");
    }
}

pub(crate) fn run(level: Level, program: Vec<Step>) -> (Seen, String) {
    with_exits(level, program).0
}

pub(crate) fn exits(level: Level, program: Vec<Step>) -> usize {
    with_exits(level, program).1
}

fn with_exits(level: Level, program: Vec<Step>) -> ((Seen, String), usize) {
    let (pages, descriptors) =
        ([const { ApicPage::new() }; 2], [const { PostedDescriptor::new() }; 2]);
    let (bitmap, access_page) = (MsrBitmap::new(), [const { AtomicU32::new(0) }; 1024]);
    let pid_pointers = [std::sync::atomic::AtomicU64::new(DESCRIPTOR | 1)];
    let pending = AtomicU8::new(0);
    let vectors = NotificationVectors { running: NOTIFICATION, wakeup: WAKEUP };
    let slots = [0, 1].map(|index| {
        let posting = Posting::new(&descriptors[index], vectors, HostMode::X2Apic);
        Slot::new(&pages[index], index as u32, Profile::intel(), posting)
    });
    let vm = Vm::new(&slots).expect("IDs ascend");

    let memory = Arc::new(Memory::new());
    memory.add_dwords(PAGE, pages[0].words());
    memory.add_dwords(ACCESS_PAGE, &access_page);
    memory.add_qwords(BITMAP, bitmap.words());
    memory.add_qwords(DESCRIPTOR, descriptors[0].words());
    memory.add_qwords(PID_POINTERS, pid_pointers.iter());
    let capability = Capability::at(level);
    let mut region = VmcsRegion::with_default_controls(capability);
    region.set_bits(field::PIN_BASED, controls::pin::EXTERNAL_INTERRUPT_EXITING);
    region.set_bits(field::PRIMARY, controls::primary::HLT_EXITING);
    let mut core = Core::new(0, memory, Arc::new(PhysicalBus::new()), capability, Knobs::default());
    core.vmptrld(region);

    let guest = Guest::new(&slots[0], &pending, program);
    let mut host = Hypervisor::new(VtX { core, capability, bitmap: &bitmap }, guest);
    crate::run(&mut host, Vcpu::new(&slots[0], true), vm, 0, &pending).expect("it ends");
    assert_eq!(host.processor.core.physical.leaks(), [], "guest accesses at the physical APIC");
    ((host.guest.seen, host.grant), host.exits)
}
