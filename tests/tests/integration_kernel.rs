//! A kernel whose virtualization layer asks its interrupt controller three things while it prepares an entry: what is
//! pending (without consuming it), that an interrupt was accepted, and when the next timer expires. It asks through
//! shared references, with interrupts off, so no answer may block.
//!
//! What stands between the two `glue` lines is all that such a kernel writes for the APIC. `GuestMode` plays the layer
//! below, and the guest.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use vlapic_core::{
    ApicPage, DirectInbox, Effect, Event, LocalApic, Notify, Profile, Slot, Trigger, Vector, Width,
};

/// What the layer below asks of the kernel before an entry.
trait InterruptPort {
    /// The interrupt to offer. Does not consume it: the guest may not be able to take it.
    fn pending(&self) -> Option<u8>;
    /// It has been injected.
    fn accept(&self, vector: u8);
}

/// The same, for time.
trait TimerPort {
    /// When the guest has to exit.
    fn next_deadline(&self) -> Option<u64>;
}

// glue
struct Ports<'s> {
    apic: RefCell<LocalApic<'s, DirectInbox>>,
}

impl InterruptPort for Ports<'_> {
    fn pending(&self) -> Option<u8> {
        self.apic.borrow().nominate().map(Vector::get)
    }

    fn accept(&self, vector: u8) {
        if let Some(vector) = Vector::new(vector) {
            self.apic.borrow_mut().commit(vector);
        }
    }
}

impl TimerPort for Ports<'_> {
    fn next_deadline(&self) -> Option<u64> {
        self.apic.borrow().next_deadline()
    }
}

fn run(ports: &Ports<'_>, mode: &mut GuestMode) {
    while !mode.finished {
        let apic = || ports.apic.borrow_mut();
        while let Some(event) = apic().take_event() {
            mode.carry_out(event);
        }
        if apic().prepare(mode.now).event {
            continue;
        }
        let effect = match mode.execute(ports, ports) {
            Exit::Store(offset, value) => {
                apic().write_mmio(offset, Width::Dword, value.into(), mode.now)
            }
            Exit::Load(offset) => {
                mode.answer = apic().read_mmio(offset, Width::Dword, mode.now);
                Effect::None
            }
            Exit::Deadline | Exit::Finish => Effect::None,
        };
        mode.act(effect);
    }
}
// end of glue

/// The layer below, which enters the guest; and what the guest does.
struct GuestMode<'g> {
    now: u64,
    program: VecDeque<Step<'g>>,
    interrupt_flag: bool,
    finished: bool,
    answer: u64,
    injected: Vec<(u64, u8)>,
    effects: Vec<Effect>,
    events: Vec<Event>,
}

enum Exit {
    Store(u16, u32),
    Load(u16),
    Deadline,
    Finish,
}

enum Step<'g> {
    Store(u16, u32),
    Load(u16),
    InterruptsOn,
    /// Time passes, up to the deadline.
    Compute(u64),
    /// Another CPU does something that kicks this one.
    Elsewhere(&'g dyn Fn() -> Notify),
}

impl GuestMode<'_> {
    fn execute(&mut self, interrupts: &impl InterruptPort, timers: &impl TimerPort) -> Exit {
        if let Some(vector) = interrupts.pending() {
            assert_eq!(interrupts.pending(), Some(vector), "asking consumes nothing");
            if self.interrupt_flag {
                interrupts.accept(vector);
                self.interrupt_flag = false;
                self.injected.push((self.now, vector));
            }
        }
        let deadline = timers.next_deadline().unwrap_or(u64::MAX);
        while deadline > self.now {
            match self.program.pop_front() {
                Some(Step::Store(offset, value)) => return Exit::Store(offset, value),
                Some(Step::Load(offset)) => return Exit::Load(offset),
                // The exit stands for that of the interrupt window.
                Some(Step::InterruptsOn) => {
                    self.interrupt_flag = true;
                    return Exit::Deadline;
                }
                Some(Step::Compute(ticks)) if self.now + ticks > deadline => {
                    self.program.push_front(Step::Compute(self.now + ticks - deadline));
                    self.now = deadline;
                }
                Some(Step::Compute(ticks)) => self.now += ticks,
                Some(Step::Elsewhere(act)) => {
                    if act() == Notify::Kick {
                        return Exit::Deadline;
                    }
                }
                None => {
                    self.finished = true;
                    return Exit::Finish;
                }
            }
        }
        Exit::Deadline
    }

    fn carry_out(&mut self, event: Event) {
        self.events.push(event);
    }

    fn act(&mut self, effect: Effect) {
        if effect != Effect::None {
            self.effects.push(effect);
        }
    }
}

#[test]
fn a_guest_runs_on_three_questions() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
    let upcall = AtomicU8::new(0);
    let mut apic = LocalApic::new(&slot, true);
    apic.bind_upcall(&upcall);
    let ports = Ports { apic: RefCell::new(apic) };
    let register = || slot.register_upcall(0xf3, &upcall).expect("a legal vector");
    let event = || slot.notify_upcall(&upcall);
    let device = || slot.request(0x61, Trigger::Level).notify;
    let mut mode = GuestMode {
        now: 0,
        interrupt_flag: false,
        finished: false,
        answer: 0,
        injected: Vec::new(),
        effects: Vec::new(),
        events: Vec::new(),
        program: VecDeque::from([
            Step::InterruptsOn,
            // An upcall while the APIC is software-disabled: nothing shows until it is enabled.
            Step::Elsewhere(&register),
            Step::Elsewhere(&event),
            Step::Load(0x270),
            Step::Store(0xf0, 0x1ff),
            Step::Store(0xb0, 0),
            // A periodic timer, which fires in the middle of a computation.
            Step::Store(0x320, 0x2_0052),
            Step::Store(0x3e0, 0xb),
            Step::Store(0x380, 1000),
            Step::InterruptsOn,
            Step::Compute(1500),
            Step::Store(0xb0, 0),
            Step::Store(0x380, 0),
            Step::Elsewhere(&device),
            Step::InterruptsOn,
            Step::Store(0xb0, 0),
        ]),
    };
    run(&ports, &mut mode);

    assert_eq!(mode.injected, [(0, 0xf3), (1000, 0x52), (1500, 0x61)]);
    assert_eq!(mode.answer, 0, "no stale upcall in IRR");
    assert_eq!(upcall.load(SeqCst), 1, "the guest has not cleared it");
    let broadcast = Effect::EndOfInterrupt(Vector::new(0x61).expect("legal"));
    assert_eq!(mode.effects.last(), Some(&broadcast));
    assert!(mode.events.is_empty());
    assert_eq!(mode.now, 1500);
}
