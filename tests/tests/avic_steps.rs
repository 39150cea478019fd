//! What others do between any two instructions of the AVIC driver: a post while the vCPU goes to sleep or enters, a
//! route attached while it comes and goes, and the other way round. On the driver's own code, instruction by
//! instruction.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::cell::{Cell, RefCell};

use avic::{
    Backing, Capabilities, Face, GuestTarget, Host, Inhibit, IrteCell, LogicalPage, MsrPermissions,
    PhysicalPage, Resources, Route, Shared, Storage, Vcpu, Vmcb, VmcbPage, Wanted, Whereabouts,
    Window,
};
use vlapic_core::{
    ApicPage, Bank, EntryInput, Inbox, Next, Notify, Profile, Register, Slot, Trigger, Vector, Vm,
};
use vlapic_hal::fake::VirtualIsPhysical;
use vlapic_tests::single_step::{interrupt, points};

const CPU: u32 = 0x10;
const INPUT: EntryInput = EntryInput { now: 0, cpu: CPU, interruptible: true, injecting: false };
const VECTOR: u8 = 0x41;
/// One vCPU with an enabled APIC and a device, whose memory is never given back.
struct Ground {
    shared: &'static Shared<'static>,
    vcpu: RefCell<Vcpu<'static>>,
    vmcb: RefCell<VmcbPage>,
}

fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl Ground {
    fn new() -> Self {
        let page: &'static ApicPage = leaked(ApicPage::new());
        let slots = leaked([Slot::new(page, 0, Profile::amd(), Backing::new())]);
        let irte = leaked(IrteCell::new());
        let storage = Storage {
            physical: leaked([PhysicalPage::new()]),
            logical: leaked(LogicalPage::new()),
            routes: leaked([Route::new(irte)]),
        };
        let vm = Vm::new(slots).expect("slots in order");
        let shared = leaked(Shared::new(vm, storage, &VirtualIsPhysical).expect("addresses"));
        let mut capabilities = Capabilities::default();
        (capabilities.avic, capabilities.nested_paging) = (true, true);
        let resources = Resources {
            msr_permissions: leaked(MsrPermissions::new()),
            window: leaked(Window::new()),
            private_asid: true,
            host: Host::new(),
        };
        let mut vcpu = Vcpu::new(shared, 0, true).expect("a slot");
        let mut vmcb = VmcbPage::new();
        let grant = vcpu.configure(&mut vmcb, &capabilities, Wanted::ALL, resources);
        assert!(grant.features().contains(avic::Feature::IsRunning), "{grant}");
        page.write(Register::Svr, 0x1ff);
        let ground = Self { shared, vcpu: RefCell::new(vcpu), vmcb: RefCell::new(vmcb) };
        ground.detach();
        ground
    }

    /// The entry is nobody's, and says what it says of no vCPU.
    fn detach(&self) {
        self.route().detach();
        let target = GuestTarget {
            vector: 0x55,
            backing_page: self.shared.physical().entry(0).backing_page(),
            destination: 0x7f,
            running: true,
            log: true,
            tag: 0,
            suppress_page_faults: true,
        };
        self.route().irte().store_disabled(target.encode().expect("an aligned page"));
    }

    fn slot(&self) -> &'static Slot<'static, Backing> {
        self.shared.vm().slot(0).expect("a slot")
    }

    fn route(&self) -> &'static Route<'static> {
        &self.shared.routes()[0]
    }

    fn enter(&self) -> Option<Vector> {
        let mut vmcb = self.vmcb.borrow_mut();
        for _ in 0..2 {
            let Ok(entry) = self.vcpu.borrow_mut().before_entry(&mut *vmcb, INPUT);
            if entry.next == Next::Enter {
                return entry.injected;
            }
            // The window goes.
        }
        None
    }

    fn block(&self) -> bool {
        self.vcpu.borrow_mut().block(INPUT)
    }

    fn preempt(&self) {
        self.vcpu.borrow_mut().preempt();
    }

    fn post(&self) -> Notify {
        self.slot().request(VECTOR, Trigger::Edge).notify
    }

    /// What a processor or an IOMMU does first.
    fn set_irr(&self) {
        let vector = Vector::new(VECTOR).expect("a legal vector");
        self.slot().page().irr().insert(vector);
    }

    fn is_running(&self) -> bool {
        self.shared.physical().entry(0).is_running()
    }

    /// IsRun and GALogIntr.
    fn device(&self) -> (bool, bool) {
        let target = self.route().irte().load().decode().expect("in guest mode");
        (target.running, target.log)
    }

    /// What changes of it when the interrupt comes.
    fn irr(&self) -> u64 {
        u64::from(self.slot().page().read(Register::Irr(Bank::new(VECTOR / 32))))
    }

    fn whereabouts(&self) -> u64 {
        match self.slot().inbox().whereabouts() {
            Whereabouts::Preempted => 0,
            Whereabouts::Blocked => 1,
            Whereabouts::Kick(_) => 2,
            Whereabouts::Doorbell(_) => 3,
        }
    }

    fn route_word(&self) -> u64 {
        self.route().irte().load().halves()[0]
    }

    /// Forgets the interrupt, and enters.
    fn begin(&self) {
        let page = self.slot().page();
        for vectors in [page.irr(), page.isr()] {
            if let Some(vector) = vectors.highest() {
                vectors.remove(vector);
            }
        }
        self.vmcb.borrow_mut().store(0x0a8, 0);
        assert_eq!(self.enter(), None);
    }
}

/// For each point of `code` that matters to who looks at `watched`: `before`, then `code` with `meanwhile` at that point,
/// then `check`.
fn between(
    watched: &dyn Fn() -> u64,
    before: &dyn Fn(),
    meanwhile: &dyn Fn(),
    code: &dyn Fn(),
    check: &dyn Fn(),
) {
    // Once for what is only done once.
    before();
    code();
    before();
    let points = points(watched, code);
    assert!(points.len() > 2, "nobody sees a change");
    for point in points {
        before();
        assert!(interrupt(point, meanwhile, code), "the same code each time");
        check();
    }
}

/// One against the other, and the other against the one: each with what it changes for the other to see.
struct Race<'a> {
    before: &'a dyn Fn(),
    one: (&'a dyn Fn(), &'a dyn Fn() -> u64),
    other: (&'a dyn Fn(), &'a dyn Fn() -> u64),
    check: &'a dyn Fn(),
}

impl Race<'_> {
    fn run(&self) {
        let Self { before, one, other, check } = *self;
        between(one.1, before, other.0, one.0, check);
        between(other.1, before, one.0, other.0, check);
    }
}

/// The vCPU does not sleep, or its waker is told.
#[test]
fn a_post_and_sleep() {
    let ground = Ground::new();
    let (slept, told) = (Cell::new(false), Cell::new(Notify::None));
    Race {
        before: &|| ground.begin(),
        one: (&|| told.set(ground.post()), &|| ground.irr()),
        other: (&|| slept.set(ground.block()), &|| ground.whereabouts()),
        check: &|| {
            let told = told.get();
            assert!(!slept.get() || told == Notify::Wake, "asleep, and {told:?}");
        },
    }
    .run();
}

/// As a processor does it: IRR, then a look at IsRunning, then exit 401 at the sender, whose host tells the target.
#[test]
fn an_ipi_by_hardware_and_sleep() {
    let ground = Ground::new();
    let (slept, running) = (Cell::new(false), Cell::new(false));
    let ipi = || {
        ground.set_irr();
        running.set(ground.is_running());
    };
    Race {
        before: &|| ground.begin(),
        one: (&ipi, &|| ground.irr()),
        other: (&|| slept.set(ground.block()), &|| ground.is_running().into()),
        check: &|| {
            assert!(!slept.get() || !running.get(), "asleep, and the processor rings its doorbell");
            assert!(!slept.get() || ground.slot().inbox().announce() == Notify::Wake);
        },
    }
    .run();
}

/// IRR, then a look at IsRun and GALogIntr.
#[test]
fn a_device_and_sleep() {
    let ground = Ground::new();
    assert!(ground.route().attach(ground.shared, 0).is_some());
    let (slept, seen) = (Cell::new(false), Cell::new((false, false)));
    let interrupt = || {
        ground.set_irr();
        seen.set(ground.device());
    };
    Race {
        before: &|| ground.begin(),
        one: (&interrupt, &|| ground.irr()),
        other: (&|| slept.set(ground.block()), &|| ground.route_word()),
        check: &|| {
            let seen = seen.get();
            assert!(!slept.get() || seen == (false, true), "asleep, {seen:?}");
        },
    }
    .run();
}

/// A post while acceleration goes off: the entry injects it or opens a window, or a kick makes it look again.
#[test]
fn a_post_and_an_entry_without_avic() {
    let ground = Ground::new();
    let (told, injected) = (Cell::new(Notify::None), Cell::new(false));
    Race {
        before: &|| {
            ground.slot().inbox().allow(Inhibit::Disabled);
            ground.begin();
            let _ = ground.slot().inbox().inhibit(Inhibit::Disabled);
        },
        one: (&|| told.set(ground.post()), &|| ground.irr()),
        other: (&|| injected.set(ground.enter().is_some()), &|| ground.whereabouts()),
        check: &|| {
            let vmcb = ground.vmcb.borrow();
            assert_eq!(Face::of(&*vmcb), Face::Emulated);
            let window = vmcb.load(0x060) >> 8 & 1 != 0;
            let told = told.get();
            assert!(injected.get() || window || told == Notify::Kick, "{told:?}");
        },
    }
    .run();
}

/// However a route comes to its vCPU, its entry ends up as the vCPU is.
#[test]
fn a_route_attached_while_the_vcpu_comes_and_goes() {
    let ground = Ground::new();
    let block = || assert!(ground.block());
    let enter = || assert_eq!(ground.enter(), None);
    let preempt = || ground.preempt();
    let changes: [[&dyn Fn(); 2]; 5] = [
        [&enter, &block],
        [&enter, &preempt],
        [&block, &enter],
        [&preempt, &enter],
        [&preempt, &block],
    ];
    for [before, change] in changes {
        Race {
            before: &|| {
                ground.detach();
                before();
            },
            one: (&|| assert!(ground.route().attach(ground.shared, 0).is_some()), &|| {
                ground.route_word() << 1 | u64::from(ground.route().target().is_some())
            }),
            other: (change, &|| ground.whereabouts()),
            check: &|| {
                let expected = match ground.slot().inbox().whereabouts() {
                    Whereabouts::Doorbell(_) => (true, false),
                    Whereabouts::Preempted => (false, false),
                    Whereabouts::Kick(_) | Whereabouts::Blocked => (false, true),
                };
                assert_eq!(ground.device(), expected);
            },
        }
        .run();
    }
}
