//! What a hypervisor has anyway, and what of it depends on the processor.

use vlapic_core::{
    Configure, Delivery, Effect, Entry, EntryInput, Event, Grant, Inbox, Notify, Trigger, Vector,
};

use crate::Apic;
use crate::script::{Guest, NMI, Step};

/// Makes a CPU leave guest mode.
pub(crate) const KICK: u8 = 0xf4;

/// The hypervisor around vCPU 0 of its VM; `C` is what its processor is programmed by.
pub(crate) trait Host<'s, C, B: Configure<'s, C>> {
    /// What is asked for the capabilities.
    type Processor;

    fn processor(&self) -> &Self::Processor;
    fn controls(&mut self) -> &mut C;
    fn resources(&self) -> B::Resources;
    fn granted(&mut self, grant: Grant<B::Feature>);
    fn finished(&self) -> bool;
    fn now(&self) -> u64;
    fn interrupts_off(&mut self);
    fn interrupts_on(&mut self);
    fn entry_input(&mut self) -> EntryInput;
    fn take_kick(&mut self) -> bool;
    /// Arms the timer, flushes if it is to, and runs the guest to its next exit.
    fn enter(&mut self, entry: &Entry) -> B::Exit;
    /// What an exit is that has nothing to do with the APIC, or only in part.
    fn why(&mut self, exit: &B::Exit) -> Why;
    /// Decodes the guest's access to its APIC, does it, and steps over it.
    fn emulate(&mut self, apic: &mut Apic<'s, B::Inbox>) -> Effect;
    fn carry_out(&mut self, event: Option<Event>);
    fn unmap_window(&mut self);
    fn notify(&mut self, vcpu: usize, notify: Notify);
    fn end_of_interrupt(&mut self, vector: Vector);
    fn sleep_until(&mut self, time: Option<u64>);
}

/// What an exit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// An access to an MSR or to the register window, which was not done.
    Access,
    /// HLT.
    Halt,
    /// A physical interrupt, a window, the end: nothing is left to do.
    Other,
}

/// One kind of processor.
pub(crate) trait Processor<'s, C, B: Configure<'s, C>> {
    /// What is asked for the capabilities.
    type Probed;

    fn probed(&self) -> &Self::Probed;
    fn controls(&mut self) -> &mut C;
    fn resources(&self) -> B::Resources;
    fn granted(&mut self, grant: &Grant<B::Feature>);
    /// RFLAGS.IF is set and there is no shadow.
    fn interruptible(&mut self) -> bool;
    fn injecting(&mut self) -> bool;
    fn inject_nmi(&mut self);
    /// Enters: what was injected, and the exit that followed at once.
    fn enter(&mut self, entry: &Entry) -> (Option<u8>, Option<B::Exit>);
    /// A boundary between two instructions.
    fn boundary(&mut self) -> What<B::Exit>;
    fn execute(&mut self, step: Step) -> What<B::Exit>;
    /// A physical interrupt for the CPU.
    fn raise(&mut self, vector: u8);
    /// What a post asks for, but for kicks and wakes.
    fn tell(&mut self, notify: Notify);
    /// The host takes its physical interrupts.
    fn take_interrupts(&mut self);
    /// `None`: execute the instruction again.
    fn why(&mut self, exit: &B::Exit) -> Option<Class>;
    fn unmap_window(&mut self);
}

/// What an exit is, as the processor numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Access,
    Halt,
    Finish,
    Other,
}

/// What came of an instruction or a boundary.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<E> {
    Nothing,
    Value(u64),
    Taken(u8),
    Exit(E),
}

/// The hypervisor on a processor of the kind `P`.
pub(crate) struct Hypervisor<'s, P, I> {
    pub(crate) processor: P,
    pub(crate) guest: Guest<'s, I>,
    pub(crate) grant: String,
    pub(crate) exits: usize,
    now: u64,
    exit_by: Option<u64>,
    kicked: bool,
    in_guest: bool,
}

impl<'s, P, I: Inbox> Hypervisor<'s, P, I> {
    pub(crate) fn new(processor: P, guest: Guest<'s, I>) -> Self {
        let grant = String::new();
        Self {
            processor,
            guest,
            grant,
            exits: 0,
            now: 0,
            exit_by: None,
            kicked: false,
            in_guest: false,
        }
    }

    /// What the guest does next, or what happens beside it.
    fn step<C, B>(&mut self) -> What<B::Exit>
    where
        B: Configure<'s, C, Inbox = I>,
        P: Processor<'s, C, B>,
    {
        let step = self.guest.program.pop_front().expect("the program ends with Finish");
        match step {
            Step::Device(vector, trigger) => {
                let notify = self.guest.request(vector, trigger).notify;
                self.tell::<C, B>(notify);
            }
            Step::Nmi => {
                let notify = self.guest.slot.receive(Delivery::Nmi).notify;
                self.tell::<C, B>(notify);
            }
            Step::Upcall => {
                let notify = self.guest.slot.notify_upcall(self.guest.pending);
                self.tell::<C, B>(notify);
            }
            Step::Compute(ticks) => {
                let end = self.now + ticks;
                let stop = self.exit_by.map_or(end, |by| by.min(end));
                assert!(stop > self.now, "the timer's interrupt does not end the guest's turn");
                if stop < end {
                    self.guest.program.push_front(Step::Compute(end - stop));
                }
                self.now = stop;
            }
            instruction => {
                self.guest.current = Some(instruction);
                return self.processor.execute(instruction);
            }
        }
        What::Nothing
    }

    fn tell<C, B>(&mut self, notify: Notify)
    where
        B: Configure<'s, C, Inbox = I>,
        P: Processor<'s, C, B>,
    {
        match notify {
            Notify::None => {}
            Notify::Kick | Notify::Wake => {
                self.kicked = true;
                if self.in_guest {
                    self.processor.raise(KICK);
                }
            }
            other => self.processor.tell(other),
        }
    }
}

impl<'s, C, B, P, I> Host<'s, C, B> for Hypervisor<'s, P, I>
where
    I: Inbox + 's,
    B: Configure<'s, C, Inbox = I>,
    P: Processor<'s, C, B>,
{
    type Processor = P::Probed;

    fn processor(&self) -> &P::Probed {
        self.processor.probed()
    }

    fn controls(&mut self) -> &mut C {
        self.processor.controls()
    }

    fn resources(&self) -> B::Resources {
        self.processor.resources()
    }

    fn granted(&mut self, grant: Grant<B::Feature>) {
        self.processor.granted(&grant);
        self.grant = grant.to_string();
    }

    fn finished(&self) -> bool {
        self.guest.finished
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn interrupts_off(&mut self) {}

    fn interrupts_on(&mut self) {
        self.processor.take_interrupts();
    }

    fn entry_input(&mut self) -> EntryInput {
        let interruptible = self.processor.interruptible();
        let injecting = self.processor.injecting();
        EntryInput { now: self.now, cpu: 0, interruptible, injecting }
    }

    fn take_kick(&mut self) -> bool {
        std::mem::take(&mut self.kicked)
    }

    fn enter(&mut self, entry: &Entry) -> B::Exit {
        self.exit_by = entry.exit_by;
        self.in_guest = true;
        if self.exit_by.is_some_and(|by| by <= self.now) {
            self.processor.raise(KICK);
        }
        let (injected, exit) = self.processor.enter(entry);
        self.guest.seen.taken.extend(injected);
        let mut what = exit.map_or(What::Nothing, What::Exit);
        let exit = loop {
            match what {
                What::Exit(exit) => break exit,
                What::Taken(vector) => self.guest.seen.taken.push(vector),
                What::Value(value) => self.guest.seen.read.push(value),
                What::Nothing => {}
            }
            if self.exit_by.is_some_and(|by| by <= self.now) {
                self.processor.raise(KICK);
            }
            what = match self.processor.boundary() {
                What::Nothing => self.step::<C, B>(),
                event => event,
            };
        };
        self.in_guest = false;
        self.exits += 1;
        assert!(self.exits < 1000, "{:?} {:?}", self.guest.current, self.guest.seen);
        exit
    }

    fn why(&mut self, exit: &B::Exit) -> Why {
        match self.processor.why(exit) {
            Some(Class::Access) => Why::Access,
            Some(Class::Halt) => Why::Halt,
            Some(Class::Finish) => {
                self.guest.finished = true;
                Why::Other
            }
            Some(Class::Other) => Why::Other,
            None => {
                let again = self.guest.current.take().expect("an instruction");
                self.guest.program.push_front(again);
                Why::Other
            }
        }
    }

    fn emulate(&mut self, apic: &mut Apic<'s, I>) -> Effect {
        self.guest.emulate(apic, self.now)
    }

    fn carry_out(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Nmi) => self.processor.inject_nmi(),
            other => unreachable!("nobody sends {other:?} to vCPU 0"),
        }
    }

    fn unmap_window(&mut self) {
        self.processor.unmap_window();
    }

    fn notify(&mut self, vcpu: usize, notify: Notify) {
        if vcpu == 0 {
            self.tell::<C, B>(notify);
        } else if notify == Notify::Kick {
            self.guest.seen.kicked.push(vcpu);
        }
    }

    fn end_of_interrupt(&mut self, vector: Vector) {
        self.guest.seen.ended.push(vector.get());
    }

    /// A device's interrupt comes while the vCPU sleeps.
    fn sleep_until(&mut self, _: Option<u64>) {
        self.guest.seen.sleeps += 1;
        let Some(Step::Halt(vector)) = self.guest.current else { unreachable!("HLT") };
        let notify = self.guest.request(vector, Trigger::Edge).notify;
        assert_ne!(notify, Notify::None, "a sleeper is told");
        self.tell::<C, B>(notify);
    }
}

/// The vector of an NMI that was injected.
pub(crate) const INJECTED_NMI: u64 = 1 << 31 | 2 << 8 | NMI as u64;
