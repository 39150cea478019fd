//! A processor that helps with nothing: every access exits, interrupts are injected.

use std::sync::atomic::AtomicU8;

use vlapic_core::{
    ApicPage, DirectInbox, Emulated, Entry, Grant, Injection, NoFeature, Notify, Profile, Slot, Vm,
};

use crate::host::{Class, Hypervisor, Processor, What};
use crate::script::{Guest, NMI, Seen, Step};

/// The processor: RFLAGS.IF, and what the entry is to inject.
#[derive(Default)]
struct Bare {
    injection: Injection,
    nmi: bool,
    interrupt_flag: bool,
    physical: bool,
    last: Option<Class>,
}

impl<'s> Processor<'s, Injection, Emulated<'s>> for Bare {
    type Probed = ();

    fn probed(&self) -> &() {
        &()
    }

    fn controls(&mut self) -> &mut Injection {
        &mut self.injection
    }

    fn resources(&self) {}

    fn granted(&mut self, _: &Grant<NoFeature>) {}

    fn interruptible(&mut self) -> bool {
        self.interrupt_flag
    }

    fn injecting(&mut self) -> bool {
        self.nmi
    }

    fn inject_nmi(&mut self) {
        self.nmi = true;
    }

    fn enter(&mut self, _: &Entry) -> (Option<u8>, Option<()>) {
        let vector = self.injection.vector.map(vlapic_core::Vector::get);
        let injected = if std::mem::take(&mut self.nmi) { Some(NMI) } else { vector };
        self.interrupt_flag &= injected.is_none();
        (injected, None)
    }

    fn boundary(&mut self) -> What<()> {
        let window = self.injection.window && self.interrupt_flag;
        if !self.physical && !window {
            return What::Nothing;
        }
        self.last = Some(Class::Other);
        What::Exit(())
    }

    fn execute(&mut self, step: Step) -> What<()> {
        self.last = Some(match step {
            Step::InterruptsOn => {
                self.interrupt_flag = true;
                return What::Nothing;
            }
            Step::Halt(_) => Class::Halt,
            Step::Finish => Class::Finish,
            _ => Class::Access,
        });
        What::Exit(())
    }

    fn raise(&mut self, _: u8) {
        self.physical = true;
    }

    fn tell(&mut self, notify: Notify) {
        unreachable!("{notify:?} without any help");
    }

    fn take_interrupts(&mut self) {
        self.physical = false;
    }

    fn why(&mut self, (): &()) -> Option<Class> {
        self.last.take()
    }

    fn unmap_window(&mut self) {
        unreachable!("there is no hardware behind it");
    }
}

pub(crate) fn run(program: Vec<Step>) -> (Seen, String) {
    with_exits(program).0
}

pub(crate) fn exits(program: Vec<Step>) -> usize {
    with_exits(program).1
}

fn with_exits(program: Vec<Step>) -> ((Seen, String), usize) {
    let (pages, pending) = ([const { ApicPage::new() }; 2], AtomicU8::new(0));
    let slots = [0, 1].map(|id| Slot::new(&pages[id], id as u32, Profile::amd(), DirectInbox));
    let vm = Vm::new(&slots).expect("IDs ascend");
    let guest = Guest::new(&slots[0], &pending, program);
    let mut host = Hypervisor::new(Bare::default(), guest);
    crate::run(&mut host, Emulated::new(&slots[0], true), vm, 0, &pending).expect("it ends");
    ((host.guest.seen, host.grant), host.exits)
}
