//! AMD: posts, exits 401 and 402, entries, coming to a CPU and leaving it.

use std::hint::black_box;

use avic::{
    Backing, Capabilities, Exit, Face, Host, Inhibit, LogicalPage, MsrPermissions, PhysicalPage,
    Resources, Shared, Storage, Vcpu, VmcbPage, Wanted, Whereabouts, Window,
};
use vlapic_core::{ApicPage, Effect, EntryInput, ExitOutcome, Next, Profile, Slot, Trigger, Vm};
use vlapic_hal::fake::VirtualIsPhysical;
use vlapic_tests::avic_model::Capability;

use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{NOW, enable, leak};

const VCPUS: u32 = 4;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        post("post-running", "request, whole: to a running vCPU, fresh", true, false),
        post("post-running-set", "request, whole: to a running vCPU, the bit is set", true, true),
        post("post-preempted", "request, whole: to a preempted vCPU, fresh", false, false),
    ];
    for mode in [Mode::XApic, Mode::X2Apic] {
        rows.push(entry(mode));
        rows.push(inhibited_entry(mode));
        rows.push(not_ours(mode));
        rows.push(incomplete_ipi(mode));
        rows.push(trap(mode));
        rows.push(load_and_put(mode));
    }
    rows
}

fn row(name: &str, mode: Mode, what: &'static str, make: impl Fn() -> Contender + 'static) -> Row {
    Row::new("amd", name, mode, what, move || {
        Contenders::ours(make()).floor(floor::drain_by_loads())
    })
}

fn post(name: &str, what: &'static str, running: bool, pending: bool) -> Row {
    Row::new("amd", name, Mode::None, what, move || {
        let mut subject = Subject::new(Mode::X2Apic);
        if !running {
            subject.vcpus[1].preempt();
        }
        let slot = &subject.shared.vm().slots()[1];
        let found = matches!(slot.inbox().whereabouts(), Whereabouts::Doorbell(_));
        assert_eq!(found, running, "{:?}", slot.inbox().whereabouts());
        // A vCPU that is gone would not be found running: it stays.
        let ours = Contender::new("ours", (slot, subject), move |(slot, _), _| {
            let _ = black_box(slot.request(black_box(0x61), Trigger::Edge));
            if !pending {
                slot.page().store(0x230, 0);
            }
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
}

fn entry(mode: Mode) -> Row {
    row("entry", mode, "before entry, nothing to do", move || {
        Contender::new("ours", Subject::new(mode), |subject, _| subject.enter())
    })
}

/// As on a processor without AVIC: interrupts would be injected.
fn inhibited_entry(mode: Mode) -> Row {
    let what = "before entry, nothing to do, AVIC inhibited";
    row("entry-inhibited", mode, what, move || {
        let subject = Subject::new(mode);
        subject.shared.inhibit(Inhibit::Disabled).for_each(|told| {
            let _ = black_box(told);
        });
        Contender::new("ours", subject, |subject, _| subject.enter())
    })
}

fn not_ours(mode: Mode) -> Row {
    row("exit-other", mode, "an exit that is not the APIC's, before entry", move || {
        Contender::new("ours", Subject::new(mode), |subject, _| {
            let _ = black_box(subject.exit(0x60, 0, 0));
            subject.enter();
        })
    })
}

/// The target does not run: IRR is set, the telling is left.
fn incomplete_ipi(mode: Mode) -> Row {
    let what = "exit 401, the target does not run: announced; before entry";
    row("exit-401", mode, what, move || {
        let mut subject = Subject::new(mode);
        subject.vcpus[1].preempt();
        let destination = if mode == Mode::XApic { 1 << 56 } else { 1 << 32 };
        Contender::new("ours", subject, move |subject, _| {
            let outcome = subject.exit(0x401, destination | 0x4061, 1 << 32 | 1);
            if let ExitOutcome::Done(Effect::Announce(message)) = outcome {
                subject.shared.vm().announce(message.destination(), Some(0)).for_each(|told| {
                    let _ = black_box(told);
                });
            }
            subject.enter();
        })
    })
}

/// The processor has stored to an LVT entry.
fn trap(mode: Mode) -> Row {
    row("exit-402", mode, "exit 402 of a write to LINT1, a trap; before entry", move || {
        Contender::new("ours", Subject::new(mode), |subject, _| {
            let page = subject.shared.vm().slots()[0].page();
            page.store(0x360, black_box(0x400));
            let _ = black_box(subject.exit(0x402, 1 << 32 | 0x360, 0));
            subject.enter();
        })
    })
}

fn load_and_put(mode: Mode) -> Row {
    row("load-put", mode, "preempt and before entry again", move || {
        Contender::new("ours", Subject::new(mode), |subject, _| {
            subject.vcpus[0].preempt();
            subject.enter();
        })
    })
}

const INPUT: EntryInput = EntryInput { now: NOW, cpu: 1, interruptible: true, injecting: false };

/// The vCPUs of a VM, all running under AVIC, and the VMCB of the first.
struct Subject {
    shared: &'static Shared<'static>,
    vcpus: Vec<Vcpu<'static>>,
    vmcb: VmcbPage,
}

impl Subject {
    fn new(mode: Mode) -> Self {
        let pages: &[ApicPage] = Vec::leak((0..VCPUS).map(|_| ApicPage::new()).collect());
        let slot = |(id, page)| Slot::new(page, id, Profile::amd(), Backing::new());
        let slots: &[Slot<'_, Backing>] = Vec::leak((0..VCPUS).zip(pages).map(slot).collect());
        let storage = Storage {
            physical: Vec::leak(vec![PhysicalPage::new()]),
            logical: leak(LogicalPage::new()),
            routes: &[],
        };
        let vm = Vm::new(slots).unwrap_or_else(|error| unreachable!("IDs ascend: {error}"));
        let shared = Shared::new(vm, storage, &VirtualIsPhysical);
        let shared = leak(shared.unwrap_or_else(|error| unreachable!("{error}")));
        let window = leak(Window::new());
        let capabilities = Capabilities::detect(&Capability::full());
        let mut vmcbs = Vec::new();
        let mut vcpus = Vec::new();
        for index in 0..VCPUS as usize {
            let vcpu = Vcpu::new(shared, index, index == 0);
            let mut vcpu = vcpu.unwrap_or_else(|| unreachable!("a slot of the VM"));
            let mut vmcb = VmcbPage::new();
            // Nested paging is on.
            avic::Vmcb::store(&mut vmcb, 0x090, 1);
            let msr_permissions = leak(MsrPermissions::new());
            let host = Host::new();
            let resources = Resources { msr_permissions, window, private_asid: false, host };
            let grant = vcpu.configure(&mut vmcb, &capabilities, Wanted::ALL, resources);
            black_box(grant);
            enable(vcpu.apic_mut(), mode);
            vcpus.push(vcpu);
            vmcbs.push(vmcb);
        }
        // Twice: the first time they learn of each other's modes.
        for _ in 0..2 {
            for (index, (vcpu, vmcb)) in vcpus.iter_mut().zip(&mut vmcbs).enumerate() {
                enter(vcpu, vmcb, window, EntryInput { cpu: 1 + index as u32, ..INPUT });
            }
        }
        let face = Face::of(&vmcbs[0]);
        assert_eq!(face, if mode == Mode::XApic { Face::XAvic } else { Face::X2Avic });
        Self { shared, vcpus, vmcb: vmcbs.swap_remove(0) }
    }

    #[inline(always)]
    fn exit(&mut self, code: u64, info_1: u64, info_2: u64) -> ExitOutcome {
        let exit = black_box(Exit { code, info_1, info_2 });
        self.vcpus[0].after_exit(&mut self.vmcb, exit, black_box(NOW))
    }

    #[inline(always)]
    fn enter(&mut self) {
        let _ = black_box(self.vcpus[0].before_entry(&mut self.vmcb, black_box(INPUT)));
    }
}

/// Until there is nothing else to be done first. Others that are to be kicked enter anyway.
fn enter(vcpu: &mut Vcpu<'static>, vmcb: &mut VmcbPage, window: &Window, input: EntryInput) {
    for _ in 0..4 {
        let Ok(entry) = vcpu.before_entry(vmcb, input);
        match entry.next {
            Next::UnmapWindow => window.unmapped(),
            Next::KickOthers => {}
            _ => return,
        }
    }
    unreachable!("no way in");
}
