//! Many vCPUs on few cores, stepped by a seeded schedule.
//!
//! Every step of the model's processors, doorbells, kicks and IOMMU, and every call of the driver, is a step of the
//! schedule. All at once: IPIs to one, to a logical destination and to all, posts by software and by the IOMMU, level
//! interrupts, NMIs, INIT and SIPI, LDR and DFR rewritten, software-disabled APICs, inhibits, the register window unmapped,
//! sleep, preemption and migration. Now and then it all comes to rest, and the books are checked.

mod ledger;
mod program;
mod world;

use std::sync::atomic::Ordering;

use avic::Face;
use vlapic_core::Event;

use self::ledger::Ledger;
use self::program::{LEVEL, POSTED, Program, Role, UPCALL, role};
use super::exits::{Handled, Prepared, WINDOW};
use super::guest::Answer;
use super::subject::REASONS;
use super::{Broken, Hypervisor, KICK, Run};
use crate::avic_model::{self, GuestOp, Outcome, field};

/// A storm over the vCPUs of a hypervisor.
#[derive(Debug)]
pub struct Storm<'h, 'm> {
    hypervisor: &'h mut Hypervisor<'m>,
    cores: Vec<Core>,
    programs: Vec<Program>,
    ledger: Ledger,
    /// Level-triggered interrupts whose EOI is awaited.
    level: Vec<bool>,
    /// Those that are sent a SIPI.
    starting: Vec<usize>,
    sends: bool,
    /// A core, or what else moves.
    focus: usize,
    report: Report,
}

/// What a storm came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Interrupts that had to be taken, and were.
    pub taken: usize,
    /// Interrupts that might be taken.
    pub uncertain: usize,
    /// Entries without AVIC, with xAVIC and with x2AVIC.
    pub entries: [usize; 3],
    /// How often a vCPU came to another CPU than the one before.
    pub migrations: usize,
    /// How often a vCPU went to sleep.
    pub sleeps: usize,
    /// How often a vCPU went through INIT.
    pub restarts: usize,
    /// Upcalls taken, one for each event.
    pub upcalls: usize,
    /// How often the IOMMU's log overflowed.
    pub overflows: usize,
    /// How often an entry had to wait until the others had exited.
    pub waits_for_peers: usize,
    /// How often everything was at rest.
    pub rests: usize,
}

/// What the host does on one core.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Core {
    Idle,
    /// The host, with interrupts on.
    Host(usize),
    /// The others have to exit once: how many exits each had.
    Peers(usize, Vec<(usize, u64)>),
    /// Between the driver's part of an entry and VMRUN, with interrupts off.
    Ready(usize),
    Guest(usize),
    Parking(usize),
}

const CHECK_EVERY: usize = 4000;
const LOOK_EVERY: usize = 300;
const LONGEST_REST: usize = 400_000;

impl<'h, 'm> Storm<'h, 'm> {
    /// Has the hypervisor's vCPUs, all of them off their cores, start anew.
    #[must_use]
    pub fn new(hypervisor: &'h mut Hypervisor<'m>) -> Self {
        let vcpus = hypervisor.vcpus.len();
        hypervisor.settle();
        for index in 0..vcpus {
            hypervisor.unload(index);
            hypervisor.route(index, POSTED);
            hypervisor.register_upcall(index, UPCALL);
        }
        hypervisor.prompt = false;
        let mut storm = Storm {
            cores: vec![Core::Idle; hypervisor.machine.cores.len()],
            hypervisor,
            programs: (0..vcpus).map(|_| Program::default()).collect(),
            ledger: Ledger::new(vcpus),
            level: vec![false; vcpus],
            starting: Vec::new(),
            sends: true,
            focus: 0,
            report: Report::default(),
        };
        (0..vcpus).for_each(|vcpu| storm.boot(vcpu));
        storm
    }

    /// Runs so many steps and the rests between them.
    ///
    /// # Panics
    /// If an interrupt is lost ("lost"), taken that nobody sent, or the machine does not come to rest.
    pub fn run(mut self, steps: usize) -> Report {
        for number in 1..=steps {
            self.step();
            if number % LOOK_EVERY == 0 {
                self.look_for_unnoticed();
            }
            if number % CHECK_EVERY == 0 || number == steps {
                self.rest();
            }
        }
        self.report.taken = self.ledger.taken;
        self.report.uncertain = self.ledger.uncertain;
        self.hypervisor.prompt = true;
        self.report
    }

    /// Lets it all come to rest, and looks into the books.
    fn rest(&mut self) {
        self.sends = false;
        for reason in REASONS {
            self.hypervisor.shared.allow(reason);
            for index in 0..self.programs.len() {
                self.hypervisor.slot(index).inbox().allow(reason);
            }
        }
        let calm = (0..LONGEST_REST).any(|_| {
            self.step();
            self.is_calm()
        });
        assert!(calm, "the storm goes on: {:?} {:?}", self.cores, self.ledger.owed());
        assert_eq!(self.ledger.owed(), [], "lost");
        let missed =
            |&vcpu: &usize| self.ledger.upcall_is_due(vcpu) && self.hypervisor.slot(vcpu).accepts();
        let missed: Vec<_> = (0..self.programs.len()).filter(missed).collect();
        assert_eq!(missed, [0; 0], "lost: upcalls");
        let waiting: Vec<_> = (0..self.level.len()).filter(|&vcpu| self.level[vcpu]).collect();
        assert_eq!(waiting, [0; 0], "lost: EOIs of level-triggered interrupts");
        self.ledger.close();
        self.report.rests += 1;
        self.sends = true;
    }

    /// Lets what is in flight arrive; then nobody sleeps who has something to take, and a guest under AVIC has noticed
    /// what it could take.
    ///
    /// Otherwise somebody else's interrupt might make up for it, and a guest that spins would never notice; ours do
    /// sooner or later, since they halt.
    fn look_for_unnoticed(&mut self) {
        while !self.hypervisor.machine.doorbells().is_empty()
            || self.hypervisor.machine.iommu.in_flight() > 0
            || self.hypervisor.machine.cores.iter().any(avic_model::Core::is_busy)
        {
            self.advance();
        }
        self.hypervisor.read_log();
        for (vcpu, state) in self.hypervisor.vcpus.iter().enumerate() {
            let waiting = state.driver.apic().nominate();
            assert!(state.run != Run::Blocked || waiting.is_none(), "lost: vCPU {vcpu} sleeps on");
        }
        (0..self.programs.len()).for_each(|vcpu| self.check_in_service(vcpu));
        for core in 0..self.cores.len() {
            let Core::Guest(vcpu) = self.cores[core] else { continue };
            // At one boundary an NMI may go first.
            let _ = self.guest_boundary(core, vcpu) && self.guest_boundary(core, vcpu);
            let state = &self.hypervisor.vcpus[vcpu];
            let runs = self.hypervisor.machine.cores[core].in_guest() && !state.kicked;
            if runs && self.hypervisor.face(vcpu) != Face::Emulated {
                let waiting = state.driver.apic().nominate();
                assert_eq!(waiting, None, "lost: vCPU {vcpu} runs and does not notice");
            }
        }
    }

    /// As many are in service as the guest has taken and not ended. Which is not asked: an interrupt may come before an
    /// EOI that the window kept waiting, and is then the one that it ends.
    fn check_in_service(&self, vcpu: usize) {
        let program = &self.programs[vcpu];
        let amid = program.current.is_some() || !program.next.is_empty();
        if amid || !self.ledger.is_settled(vcpu) || self.starting.contains(&vcpu) {
            return;
        }
        let on_its_way = usize::from(self.hypervisor.vcpus[vcpu].in_flight.is_some());
        let in_service = self.hypervisor.slot(vcpu).page().isr().iter().count();
        let taken = &program.in_service;
        assert_eq!(in_service, taken.len() + on_its_way, "vCPU {vcpu} has taken {taken:x?}");
    }

    fn is_calm(&self) -> bool {
        let machine = &self.hypervisor.machine;
        self.cores.iter().all(|core| *core == Core::Idle)
            && self.starting.is_empty()
            && machine.doorbells().is_empty()
            && machine.bus().is_empty()
            && machine.iommu.in_flight() == 0
            && (0..self.programs.len()).all(|vcpu| !self.is_runnable(vcpu))
    }

    fn pick(&mut self, bound: usize) -> usize {
        self.hypervisor.machine.schedule.pick(bound)
    }

    fn core_of(&self, vcpu: usize) -> Option<usize> {
        self.hypervisor.vcpus[vcpu].cpu
    }

    /// Whoever is in focus moves. Focus changes now and then, so that one can do a lot while another waits in the
    /// middle of something.
    fn step(&mut self) {
        let others = 7;
        if self.pick(5) == 0 {
            self.focus = self.pick(self.cores.len() + others);
        }
        match self.focus.checked_sub(self.cores.len()) {
            None => self.step_core(self.focus),
            Some(0) => self.device(),
            Some(1) => self.start_somebody(),
            Some(2) => self.meddle(),
            Some(_) => self.advance(),
        }
    }

    /// Something in flight arrives, or a processor makes a step.
    fn advance(&mut self) {
        if let Some(avic_model::Event::Step { core, outcome: Some(outcome) }) =
            self.hypervisor.machine.advance()
        {
            self.ended(core, outcome);
        }
    }

    fn step_core(&mut self, core: usize) {
        match self.cores[core].clone() {
            Core::Idle => self.schedule(core),
            Core::Host(vcpu) => self.host(core, vcpu),
            Core::Peers(vcpu, before) => {
                let inside = |&(other, exits): &(usize, u64)| {
                    let runs = self.hypervisor.vcpus[other].vmcb.is_none();
                    runs && self.hypervisor.vcpus[other].exits == exits
                };
                if !before.iter().any(inside) {
                    self.cores[core] = Core::Host(vcpu);
                }
            }
            Core::Ready(vcpu) => self.vmrun(core, vcpu),
            Core::Guest(vcpu) if self.hypervisor.machine.cores[core].is_busy() => {
                debug_assert!(self.programs[vcpu].current.is_some());
                if let Some(outcome) = self.hypervisor.machine.cores[core].step() {
                    self.ended(core, outcome);
                }
            }
            Core::Guest(vcpu) => self.guest(core, vcpu),
            Core::Parking(vcpu) => self.park(core, vcpu),
        }
    }

    fn is_runnable(&self, vcpu: usize) -> bool {
        let vcpu = &self.hypervisor.vcpus[vcpu];
        let wanted = match vcpu.run {
            Run::Ready | Run::Woken => true,
            Run::WaitsForSipi => vcpu.kicked,
            Run::Parking | Run::Blocked => false,
        };
        wanted && vcpu.cpu.is_none()
    }

    fn schedule(&mut self, core: usize) {
        self.hypervisor.host_interrupts(core);
        let vcpus = self.programs.len();
        let first = self.pick(vcpus);
        let mut candidates = (0..vcpus).map(|step| (first + step) % vcpus);
        if let Some(vcpu) = candidates.find(|&vcpu| self.is_runnable(vcpu)) {
            self.hypervisor.vcpus[vcpu].cpu = Some(core);
            self.cores[core] = Core::Host(vcpu);
            self.report.migrations += 1;
        }
    }

    /// The host's loop before an entry.
    fn host(&mut self, core: usize, vcpu: usize) {
        self.hypervisor.host_interrupts(core);
        if self.hypervisor.vcpus[vcpu].run == Run::Woken {
            return self.fall_asleep(core, vcpu);
        }
        if self.pick(6) == 0 && self.hypervisor.vcpus[vcpu].run == Run::Ready {
            return self.preempt(core, vcpu);
        }
        self.hypervisor.vcpus[vcpu].kicked = false;
        let runs = self.hypervisor.take_events(vcpu);
        for event in std::mem::take(&mut self.hypervisor.vcpus[vcpu].events) {
            match event {
                Event::Init { .. } => self.report.restarts += 1,
                Event::Startup { .. } => self.boot(vcpu),
                Event::Nmi if role(vcpu) == Role::Dormant => self.plan_waking(vcpu),
                _ => {}
            }
        }
        if !runs {
            return self.preempt(core, vcpu);
        }
        match self.hypervisor.prepare(vcpu) {
            Prepared::Enter => self.cores[core] = Core::Ready(vcpu),
            Prepared::Again => {}
            Prepared::Peers => {
                let others: Vec<_> = (0..self.programs.len())
                    .filter(|&other| self.hypervisor.vcpus[other].vmcb.is_none())
                    .map(|other| (other, self.hypervisor.vcpus[other].exits))
                    .collect();
                for &(other, _) in &others {
                    self.hypervisor.kick(other);
                }
                self.cores[core] = Core::Peers(vcpu, others);
                self.report.waits_for_peers += 1;
            }
        }
    }

    fn preempt(&mut self, core: usize, vcpu: usize) {
        let state = &mut self.hypervisor.vcpus[vcpu];
        if self.hypervisor.config.broken == Broken::DropsInjections
            && state.in_flight.take().is_some()
            && let Some(vmcb) = &mut state.vmcb
        {
            vmcb.set64(field::EVENT_INJECTION, 0);
        }
        state.driver.preempt();
        state.cpu = None;
        self.cores[core] = Core::Idle;
    }

    fn vmrun(&mut self, core: usize, vcpu: usize) {
        if self.pick(8) == 0 {
            self.cores[core] = Core::Host(vcpu);
            return;
        }
        self.hypervisor.vmrun(vcpu);
        self.report.entries[self.hypervisor.face(vcpu) as usize] += 1;
        self.cores[core] = Core::Guest(vcpu);
        self.note_taken(vcpu);
        if self.hypervisor.vcpus[vcpu].kicked {
            self.hypervisor.machine.cores[core].physical_interrupt(KICK);
        }
    }

    /// Puts what the guest took into the books.
    fn note_taken(&mut self, vcpu: usize) {
        for vector in std::mem::take(&mut self.hypervisor.vcpus[vcpu].taken) {
            if vector == UPCALL {
                self.ledger.take_upcall(vcpu);
                self.hypervisor.storage().pending[vcpu].store(0, Ordering::SeqCst);
                self.report.upcalls += 1;
            } else {
                self.ledger.take(vcpu, vector);
            }
            self.programs[vcpu].in_service.push(vector);
        }
    }

    /// An instruction boundary. Whether nothing happened at it.
    fn guest_boundary(&mut self, core: usize, vcpu: usize) -> bool {
        if let Some(vector) = self.hypervisor.boundary(vcpu) {
            self.hypervisor.vcpus[vcpu].taken.push(vector);
            self.note_taken(vcpu);
            return false;
        }
        let stays = self.hypervisor.machine.cores[core].in_guest();
        if !stays {
            self.cores[core] = Core::Host(vcpu);
        }
        stays
    }

    fn guest(&mut self, core: usize, vcpu: usize) {
        if !self.guest_boundary(core, vcpu) {
            return;
        }
        if self.pick(24) == 0 {
            // The scheduler's tick.
            return self.hypervisor.machine.cores[core].physical_interrupt(KICK);
        }
        if let Some(op) = self.next_op(vcpu) {
            self.programs[vcpu].current = Some(op);
            self.hypervisor.machine.cores[core].begin(op);
        }
    }

    /// The guest's instruction ended, or it exited.
    fn ended(&mut self, core: usize, outcome: Outcome) {
        let Core::Guest(vcpu) = self.cores[core] else { unreachable!("no guest on {core}") };
        let op = self.programs[vcpu].current.take().expect("an instruction under way");
        let handled = if self.is_hlt_exit(op, outcome) {
            self.hypervisor.after_operation(vcpu, GuestOp::Iret, outcome)
        } else {
            self.hypervisor.after_operation(vcpu, op, outcome)
        };
        match handled {
            Handled::Retry => self.programs[vcpu].next.push_front(program::Act::Op(op)),
            Handled::Done(Answer::GeneralProtection) => unreachable!("{op:?} raises #GP"),
            Handled::Done(_) => self.programs[vcpu].sending = None,
        }
        let broadcasts = std::mem::take(&mut self.hypervisor.vcpus[vcpu].broadcasts);
        for vector in broadcasts {
            assert_eq!(vector, LEVEL, "the EOI of an edge is broadcast");
            self.level[vcpu] = false;
        }
        if self.hypervisor.machine.cores[core].in_guest() {
            return;
        }
        if self.is_hlt_exit(op, outcome) {
            return self.fall_asleep(core, vcpu);
        }
        self.cores[core] = Core::Host(vcpu);
    }

    fn is_hlt_exit(&self, op: GuestOp, outcome: Outcome) -> bool {
        op == GuestOp::Hlt && outcome.exit().is_some()
    }

    /// The vCPU is in HLT: it sleeps unless there is something to take.
    fn fall_asleep(&mut self, core: usize, vcpu: usize) {
        self.hypervisor.park(vcpu);
        let parks = self.hypervisor.vcpus[vcpu].run == Run::Parking;
        self.cores[core] = if parks { Core::Parking(vcpu) } else { Core::Host(vcpu) };
    }

    fn park(&mut self, core: usize, vcpu: usize) {
        let state = &mut self.hypervisor.vcpus[vcpu];
        if state.run != Run::Parking {
            self.cores[core] = Core::Host(vcpu);
            return;
        }
        state.run = Run::Blocked;
        state.cpu = None;
        self.cores[core] = Core::Idle;
        self.report.sleeps += 1;
    }
}
