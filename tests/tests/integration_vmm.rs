//! A virtual machine monitor in user space, over `/dev/kvm` without KVM's own interrupt controllers: every access to the
//! APIC comes out as an exit, and interrupts go in by KVM_INTERRUPT.
//!
//! What stands between the two `glue` lines is all that such a monitor writes for the APIC. `Run` has the fields of
//! `struct kvm_run` that matter here, and `Kvm` plays the kernel.

use std::collections::VecDeque;

use vlapic_core::{
    ApicPage, Backend, DirectInbox, Effect, Emulated, EntryInput, IA32_APIC_BASE, Injection, Mode,
    Notify, Profile, Slot, Trigger, Vm, Width,
};

// glue
fn before_run(vcpu: &mut Emulated<'_>, run: &mut Run, kvm: &mut Kvm) {
    let interruptible = run.ready_for_interrupt_injection;
    let input = EntryInput { now: kvm.now, cpu: 0, interruptible, injecting: false };
    let mut injection = Injection::default();
    let Ok(entry) = vcpu.before_entry(&mut injection, input);
    run.cr8 = injection.cr8.into();
    run.request_interrupt_window = injection.window;
    if let Some(vector) = injection.vector {
        kvm.interrupt(vector.get());
    }
    kvm.set_timer(entry.exit_by);
}

fn after_run(vcpu: &mut Emulated<'_>, run: &mut Run, now: u64, mut act: impl FnMut(Effect)) {
    let apic = vcpu.apic_mut();
    // KVM has checked both. A change of the mode does not exit by itself.
    if run.cr8 != apic.read_cr8() {
        apic.write_cr8(run.cr8, now).into_iter().for_each(&mut act);
    }
    if run.apic_base != apic.slot().base().bits() {
        apic.write_msr(IA32_APIC_BASE, run.apic_base, now).into_iter().for_each(&mut act);
    }
    match &mut run.exit {
        Exit::Mmio { address, data, width, write: false } => {
            let value = apic.read_mmio(*address as u16 & 0xfff, *width, now);
            *data = value.to_le_bytes();
        }
        Exit::Mmio { address, data, width, write: true } => {
            let value = u64::from_le_bytes(*data);
            act(apic.write_mmio(*address as u16 & 0xfff, *width, value, now));
        }
        Exit::Rdmsr { index, data, error } => match apic.read_msr(*index, now) {
            Ok(value) => *data = value,
            Err(_) => *error = true,
        },
        Exit::Wrmsr { index, data, error } => match apic.write_msr(*index, *data, now) {
            Ok(effect) => act(effect),
            Err(_) => *error = true,
        },
        Exit::Halted | Exit::InterruptWindow => {}
    }
}
// end of glue

/// What the monitor shares with the kernel.
struct Run {
    request_interrupt_window: bool,
    ready_for_interrupt_injection: bool,
    cr8: u64,
    apic_base: u64,
    exit: Exit,
}

enum Exit {
    Mmio { address: u64, data: [u8; 8], width: Width, write: bool },
    Rdmsr { index: u32, data: u64, error: bool },
    Wrmsr { index: u32, data: u64, error: bool },
    Halted,
    InterruptWindow,
}

/// The kernel and the guest: what the guest does next, and what it is given.
struct Kvm {
    now: u64,
    program: VecDeque<Step>,
    /// RFLAGS.IF; a delivery clears it, and so does its own handler's end set it.
    interrupt_flag: bool,
    injected: Vec<u8>,
    timer: Option<u64>,
}

enum Step {
    Exit(Exit),
    Cr8(u64),
    ApicBase(u64),
    InterruptsOn,
}

impl Kvm {
    fn interrupt(&mut self, vector: u8) {
        assert!(self.interrupt_flag, "the monitor asked whether it may");
        self.interrupt_flag = false;
        self.injected.push(vector);
    }

    fn set_timer(&mut self, time: Option<u64>) {
        self.timer = time;
    }

    /// KVM_RUN. `false` at the end of the program.
    fn run(&mut self, run: &mut Run) -> bool {
        loop {
            if self.interrupt_flag && run.request_interrupt_window {
                run.ready_for_interrupt_injection = true;
                run.exit = Exit::InterruptWindow;
                return true;
            }
            match self.program.pop_front() {
                Some(Step::Cr8(value)) => run.cr8 = value,
                Some(Step::ApicBase(value)) => run.apic_base = value,
                Some(Step::InterruptsOn) => self.interrupt_flag = true,
                Some(Step::Exit(exit)) => {
                    run.ready_for_interrupt_injection = self.interrupt_flag;
                    run.exit = exit;
                    return true;
                }
                None => return false,
            }
        }
    }
}

fn store(offset: u64, value: u32) -> Step {
    let data = u64::from(value).to_le_bytes();
    let address = 0xfee0_0000 + offset;
    Step::Exit(Exit::Mmio { address, data, width: Width::Dword, write: true })
}

fn load(offset: u64) -> Step {
    let address = 0xfee0_0000 + offset;
    Step::Exit(Exit::Mmio { address, data: [0; 8], width: Width::Dword, write: false })
}

fn wrmsr(index: u32, data: u64) -> Step {
    Step::Exit(Exit::Wrmsr { index, data, error: false })
}

fn rdmsr(index: u32) -> Step {
    Step::Exit(Exit::Rdmsr { index, data: 0, error: false })
}

#[test]
fn a_guest_runs_without_any_help() {
    let pages = [const { ApicPage::new() }; 2];
    let slots = [0, 1].map(|id| Slot::new(&pages[id], id as u32, Profile::intel(), DirectInbox));
    let vm = Vm::new(&slots).expect("IDs ascend");
    let [mut vcpu, _other] = [0, 1].map(|id| Emulated::new(&slots[id], id == 0));
    let x2apic = 0xfee0_0d00;
    let mut kvm = Kvm {
        now: 1000,
        interrupt_flag: false,
        injected: Vec::new(),
        timer: None,
        program: VecDeque::from([
            store(0xf0, 0x1ff),
            load(0xf0),
            store(0x320, 0x52),
            store(0x3e0, 0xb),
            store(0x380, 500),
            Step::Exit(Exit::Halted), // A device and the timer: see below.
            Step::Cr8(5),
            Step::InterruptsOn,
            load(0x80),
            Step::Cr8(0),
            load(0x80),
            load(0xa0),
            store(0xb0, 0),
            Step::InterruptsOn,
            store(0xb0, 0),
            Step::ApicBase(x2apic),
            load(0x20),
            rdmsr(0x802),
            rdmsr(0x80b),
            wrmsr(0x830, 0x1_0000_4500),
        ]),
    };
    let base = slots[0].base().bits();
    let mut run = Run {
        request_interrupt_window: false,
        ready_for_interrupt_injection: false,
        cr8: 0,
        apic_base: base,
        exit: Exit::Halted,
    };
    let (mut loads, mut msrs) = (Vec::new(), Vec::new());
    let (mut modes, mut told) = (Vec::new(), Vec::new());
    loop {
        before_run(&mut vcpu, &mut run, &mut kvm);
        if !kvm.run(&mut run) {
            break;
        }
        after_run(&mut vcpu, &mut run, kvm.now, |effect| match effect {
            Effect::Ipi(message) => {
                told.extend(vm.send(&message, Some(0)).map(|(to, receipt)| (to, receipt.notify)));
            }
            Effect::BaseChanged { to, .. } => modes.push(to.mode()),
            _ => {}
        });
        match run.exit {
            Exit::Mmio { data, write: false, .. } => loads.push(u64::from_le_bytes(data)),
            Exit::Rdmsr { data, error, .. } => msrs.push((data, error)),
            Exit::Halted => {
                assert_eq!(kvm.timer, Some(1500));
                kvm.now = 1500;
                let receipt = slots[0].request(0x41, Trigger::Edge);
                assert_eq!(receipt.notify, Notify::Kick);
            }
            _ => {}
        }
    }

    assert_eq!(kvm.injected, [0x52, 0x41], "by priority, each once the guest lets it in");
    // SVR; TPR twice; PPR with 52 in service; the window is gone in x2APIC mode.
    assert_eq!(loads, [0x1ff, 0x50, 0, 0x50, 0xffff_ffff]);
    assert_eq!(modes, [Mode::X2Apic]);
    assert_eq!(msrs, [(0, false), (0, true)], "the ID; EOI is write-only");
    assert_eq!(told, [(1, Notify::Kick)], "INIT");
    assert!(slots[0].page().isr().highest().is_none(), "each was ended");
}
