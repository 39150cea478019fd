//! A VM in plain emulation, with no processor to help: what every level has to agree with.

use std::sync::atomic::{AtomicU8, Ordering};

use vlapic_core::state::STATE_LENGTH;
use vlapic_core::{
    ApicPage, Delivery, DirectInbox, Effect, Event, LocalApic, Message, Mode, Profile, Slot,
    Trigger, Vm,
};

use crate::common;
use crate::hypervisor::{Answer, Op};
use crate::migrate::{Doing, Movable, Moved};
use crate::steps::{Seen, Subject, UPCALL};

/// The vCPUs, in one thread.
#[derive(Debug)]
pub struct Reference {
    slots: &'static [Slot<'static, DirectInbox>],
    vm: Vm<'static, DirectInbox>,
    vcpus: Vec<Cpu>,
    now: u64,
}

#[derive(Debug)]
struct Cpu {
    apic: LocalApic<'static, DirectInbox>,
    pending: &'static AtomicU8,
    interrupt_flag: bool,
    run: Run,
    taken: Vec<u8>,
    broadcasts: Vec<u8>,
    events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Ready,
    Halted,
    WaitsForSipi,
}

impl Reference {
    /// `vcpus` vCPUs, started, in `mode`.
    ///
    /// # Panics
    /// Not with a legal mode.
    #[must_use]
    pub fn new(vcpus: usize, profile: Profile, mode: Mode) -> Self {
        let slot = |id| {
            let page = Box::leak(Box::new(ApicPage::new()));
            Slot::new(page, id, profile, DirectInbox)
        };
        let slots: Vec<_> = (0..vcpus as u32).map(slot).collect();
        let slots: &'static [_] = slots.leak();
        let vm = Vm::new(slots).expect("slots in order");
        let vcpus = slots.iter().enumerate().map(|(index, slot)| Cpu::new(slot, index)).collect();
        let mut reference = Self { slots, vm, vcpus, now: 1000 };
        reference.start(mode);
        reference
    }

    /// As new, in `mode`: RESET, and everything forgotten.
    ///
    /// # Panics
    /// Not with a legal mode.
    pub fn restart(&mut self, mode: Mode) {
        self.now = 1000;
        for (index, cpu) in self.vcpus.iter_mut().enumerate() {
            cpu.apic.reset(index == 0);
            cpu.pending.store(0, Ordering::SeqCst);
            cpu.interrupt_flag = true;
            cpu.run = if index == 0 { Run::Ready } else { Run::WaitsForSipi };
            cpu.taken.clear();
            cpu.broadcasts.clear();
        }
        self.start(mode);
    }

    fn start(&mut self, mode: Mode) {
        for (index, slot) in self.slots.iter().enumerate() {
            if index > 0 {
                let _ = slot.receive(Delivery::Init);
                let _ = slot.receive(Delivery::Startup { page: 8 });
            }
            self.settle();
            if mode == Mode::X2Apic {
                let base = slot.base().bits() | 1 << 10;
                let answer = self.execute(index, Op::Wrmsr(0x1b, base));
                assert_eq!(answer, Answer::Done);
            }
        }
        for cpu in &mut self.vcpus {
            cpu.events.clear();
        }
    }

    /// Registers the upcall vector of every vCPU.
    ///
    /// # Panics
    /// Not with a legal vector.
    pub fn register_upcalls(&mut self) {
        for (slot, cpu) in self.slots.iter().zip(&self.vcpus) {
            let _ = slot.register_upcall(UPCALL, cpu.pending).expect("a legal vector");
        }
        self.settle();
    }

    fn settle(&mut self) {
        for cpu in &mut self.vcpus {
            cpu.settle(self.now);
        }
    }

    fn instruction(&mut self, index: usize, op: Op) -> Answer {
        let now = self.now;
        let cpu = &mut self.vcpus[index];
        if cpu.run != Run::Ready {
            return Answer::NotRunning;
        }
        match op {
            Op::SetInterruptFlag(flag) => cpu.interrupt_flag = flag,
            Op::Halt | Op::EnableAndHalt => {
                cpu.interrupt_flag |= op == Op::EnableAndHalt;
                cpu.run = Run::Halted;
            }
            _ => {}
        }
        let (answer, effect) = common::emulate(&mut cpu.apic, op, now);
        self.carry_out(index, effect);
        answer
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Ipi(message) => self.vm.send(&message, Some(index)).for_each(drop),
            Effect::EndOfInterrupt(vector) => self.vcpus[index].broadcasts.push(vector.get()),
            _ => {}
        }
    }
}

impl Cpu {
    fn new(slot: &'static Slot<'static, DirectInbox>, index: usize) -> Self {
        let pending = Box::leak(Box::new(AtomicU8::new(0)));
        let mut apic = LocalApic::new(slot, index == 0);
        apic.bind_upcall(pending);
        Self {
            apic,
            pending,
            interrupt_flag: true,
            run: if index == 0 { Run::Ready } else { Run::WaitsForSipi },
            taken: Vec::new(),
            broadcasts: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes what it can take.
    fn settle(&mut self, now: u64) {
        loop {
            while let Some(event) = self.apic.take_event() {
                self.events.push(event);
                match common::carry_out_event(event, &mut self.interrupt_flag) {
                    Some(Doing::Waiting) => self.run = Run::WaitsForSipi,
                    Some(_) => self.run = Run::Ready,
                    None => {}
                }
            }
            if self.run == Run::WaitsForSipi {
                return;
            }
            let prepared = self.apic.prepare(now);
            if prepared.event {
                continue;
            }
            match self.apic.nominate() {
                Some(vector) if self.interrupt_flag && self.apic.commit(vector) => {
                    self.run = Run::Ready;
                    self.taken.push(vector.get());
                }
                _ => return,
            }
        }
    }
}

impl Movable for Reference {
    fn now(&self) -> u64 {
        self.now
    }

    fn save(&mut self) -> Vec<Moved> {
        let now = self.now;
        let mut saved = Vec::new();
        for index in 0..self.vcpus.len() {
            let cpu = &mut self.vcpus[index];
            let mut state = [0; STATE_LENGTH];
            cpu.apic.export_state(now, &mut state);
            let doing = match cpu.run {
                Run::Ready => Doing::Running,
                Run::Halted => Doing::Halted,
                Run::WaitsForSipi => Doing::Waiting,
            };
            let (interrupt_flag, pending) = (cpu.interrupt_flag, &self.vcpus[index].pending);
            saved.push(Moved::new(state, &self.seen(index), interrupt_flag, doing, pending));
        }
        saved
    }

    fn restore(&mut self, vcpus: &[Moved], now: u64) {
        self.now = now;
        for (cpu, moved) in self.vcpus.iter_mut().zip(vcpus) {
            let corrected = cpu.apic.import_state(now, &moved.state);
            assert!(corrected.is_ok_and(|corrections| corrections.is_empty()), "{corrected:?}");
            cpu.interrupt_flag = moved.interrupt_flag;
            cpu.run = match moved.doing {
                Doing::Running => Run::Ready,
                Doing::Halted => Run::Halted,
                Doing::Waiting => Run::WaitsForSipi,
            };
            cpu.taken.clone_from(&moved.taken);
            cpu.broadcasts.clone_from(&moved.broadcasts);
            cpu.events.clone_from(&moved.events);
            cpu.pending.store(moved.pending, Ordering::SeqCst);
        }
    }
}

impl Subject for Reference {
    fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    fn execute(&mut self, vcpu: usize, op: Op) -> Answer {
        if op != Op::EnableAndHalt {
            self.settle();
        }
        let answer = self.instruction(vcpu, op);
        self.settle();
        answer
    }

    fn send(&mut self, message: &Message) {
        self.vm.send(message, None).for_each(drop);
        self.settle();
    }

    fn post(&mut self, vcpu: usize, vector: u8, trigger: Trigger) {
        let _ = self.slots[vcpu].request(vector, trigger);
        self.settle();
    }

    fn advance(&mut self, ticks: u32) {
        self.now += u64::from(ticks);
        self.settle();
    }

    fn disturb(&mut self, _: u64) {}

    fn notify_upcall(&mut self, vcpu: usize) {
        let _ = self.slots[vcpu].notify_upcall(self.vcpus[vcpu].pending);
        self.settle();
    }

    fn clear_pending(&mut self, vcpu: usize) {
        self.vcpus[vcpu].pending.store(0, Ordering::SeqCst);
    }

    fn mode(&self, vcpu: usize) -> Mode {
        self.slots[vcpu].mode()
    }

    fn seen(&self, vcpu: usize) -> Seen<'_> {
        let Cpu { taken, broadcasts, events, .. } = &self.vcpus[vcpu];
        Seen { taken, broadcasts, events, base: self.slots[vcpu].base().bits() }
    }

    fn word(&self, vcpu: usize, offset: u16) -> u32 {
        self.slots[vcpu].page().load(offset)
    }
}
