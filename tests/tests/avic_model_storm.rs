//! Many vCPUs on few cores of the AVIC model, stepped by a seeded schedule.
//!
//! The host here is no driver but the smallest one that can be right: it runs, preempts and blocks vCPUs. Each of its
//! steps that others could notice is a step of the schedule. The same storm, with one of the steps in the wrong order
//! or left out, or on a processor with erratum 1235, loses interrupts; so the model is good enough to tell.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{
    Capability, GuestOp, Knobs, Outcome, Reading, code, field, register,
};

const VCPUS: usize = 12;
const CORES: usize = 4;
const STEPS: usize = 1_000;
const SEEDS: u64 = 80;
/// After so many steps the storm holds its breath, and what was lost is counted.
const CHECK_EVERY: usize = 40;

/// Vectors of IPIs, one for each sender, and that of each vCPU's device.
const FIRST_IPI: usize = 0x40;
const DEVICE: usize = 0xe0;

/// How the host does what it has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// IsRunning is cleared in both places, then IRR is looked at.
    Right,
    /// IRR is looked at, then IsRunning is cleared.
    ChecksTooEarly,
    /// Nobody looks at IRR.
    NeverChecks,
    /// The physical table never says that a vCPU runs: the work-around for erratum 1235.
    NeverPublishes,
    /// The exit of an IPI to a sleeping target is taken as done.
    IgnoresSleepers,
    /// A wake-up for a vCPU that is about to block does nothing, because it does not block yet.
    ForgetsWakes,
    /// The IOMMU's log is not read.
    IgnoresLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vcpu {
    Runnable,
    OnCore,
    /// Still on a core, but a wake-up from now on counts.
    FallingAsleep,
    Woken,
    Blocked,
}

/// What the host does on one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    Host,
    Guest(usize),
    /// Steps of taking a vCPU off, whether it is about to block, and whether IRR was seen empty.
    Leaving {
        vcpu: usize,
        step: u32,
        blocks: bool,
        was_empty: bool,
    },
}

struct Storm<'m> {
    rig: Rig<'m>,
    protocol: Protocol,
    vcpus: [Vcpu; VCPUS],
    cores: [Core; CORES],
    /// Whether a vCPU was sent a vector and has not taken it.
    outstanding: [[bool; 256]; VCPUS],
    sent: usize,
    taken: usize,
    log_head: u64,
    sends: bool,
    /// A core, or what else moves.
    focus: usize,
}

impl<'m> Storm<'m> {
    fn new(storage: &'m Storage, protocol: Protocol, knobs: Knobs, seed: u64) -> Self {
        let full = Capability::full();
        let mut rig = Rig { x2avic: true, ..Rig::with(storage, CORES as u32, full, knobs, seed) };
        rig.machine.iommu.log.write(register::LOG_BASE, 8 << 56 | Storage::LOG);
        rig.machine.iommu.log.write(register::CONTROL, 1 << 28);
        let mut storm = Storm {
            rig,
            protocol,
            vcpus: [Vcpu::Runnable; VCPUS],
            cores: [Core::Host; CORES],
            outstanding: [[false; 256]; VCPUS],
            sent: 0,
            taken: 0,
            log_head: 0,
            sends: true,
            focus: 0,
        };
        (0..VCPUS).for_each(|vcpu| storm.remap(vcpu, None, false));
        storm
    }

    /// Runs the storm, lets it calm down, and returns how often a vCPU was left asleep with a request.
    ///
    /// Such a vCPU is woken, so that what it missed is taken and nothing hides what happens to it later.
    fn lost(mut self) -> usize {
        let mut lost = 0;
        for _ in 0..STEPS / CHECK_EVERY {
            (0..CHECK_EVERY).for_each(|_| self.step());
            lost += self.wake_the_forgotten();
        }
        assert!(self.sent > STEPS / 50, "a storm of {} interrupts", self.sent);
        self.sends = false;
        for _ in 0..10 * STEPS {
            if self.is_calm() {
                break;
            }
            (0..CHECK_EVERY).for_each(|_| self.step());
            lost += self.wake_the_forgotten();
        }
        assert!(self.is_calm(), "the storm goes on");
        assert_eq!(self.sent, self.taken, "each interrupt is taken once");
        assert_eq!(self.rig.machine.memory().stray_accesses(), 0);
        lost
    }

    /// Lets everything that is under way arrive, and wakes the vCPUs that sleep with a request all the same.
    fn wake_the_forgotten(&mut self) -> usize {
        while self.rig.machine.advance().is_some() {
            self.handle_exits();
        }
        while self.read_log() {}
        let mut forgotten = 0;
        for vcpu in 0..VCPUS {
            if self.vcpus[vcpu] == Vcpu::Blocked && !self.rig.storage.vcpu(vcpu).irr().is_empty() {
                self.vcpus[vcpu] = Vcpu::Runnable;
                forgotten += 1;
            }
        }
        forgotten
    }

    fn is_calm(&self) -> bool {
        let machine = &self.rig.machine;
        self.vcpus.iter().all(|vcpu| *vcpu == Vcpu::Blocked)
            && self.cores.iter().all(|core| *core == Core::Host)
            && machine.doorbells().is_empty()
            && machine.iommu.in_flight() == 0
            && self.log_head == machine.iommu.log.read(register::LOG_TAIL)
    }

    /// Whoever is in focus moves. Focus changes now and then, so that one core can do a lot while another waits in the
    /// middle of something.
    fn step(&mut self) {
        if self.pick(6) == 0 {
            self.focus = self.pick(CORES + 3);
        }
        match self.focus.checked_sub(CORES) {
            None => self.step_core(self.focus),
            Some(0) => self.device(),
            Some(1) => {
                let _ = self.read_log();
            }
            Some(_) => {
                let _ = self.rig.machine.advance();
            }
        }
        self.handle_exits();
    }

    fn step_core(&mut self, core: usize) {
        match self.cores[core] {
            Core::Host => self.schedule(core),
            Core::Guest(vcpu) if !self.rig.machine.cores[core].is_busy() => {
                self.guest(core, vcpu);
            }
            Core::Guest(_) => {
                let _ = self.rig.machine.cores[core].step();
            }
            Core::Leaving { .. } => self.leave(core),
        }
    }

    /// Handles the exits of operations that the schedule brought to their end.
    fn handle_exits(&mut self) {
        for core in 0..CORES {
            if matches!(self.cores[core], Core::Guest(_))
                && !self.rig.machine.cores[core].in_guest()
            {
                self.handle_exit(core);
            }
        }
    }

    /// Takes a runnable vCPU, announces it, and enters it.
    fn schedule(&mut self, core: usize) {
        let first = self.pick(VCPUS);
        let mut candidates = (0..VCPUS).map(|step| (first + step) % VCPUS);
        let Some(vcpu) = candidates.find(|vcpu| self.vcpus[*vcpu] == Vcpu::Runnable) else {
            return;
        };
        self.vcpus[vcpu] = Vcpu::OnCore;
        self.cores[core] = Core::Guest(vcpu);
        if self.protocol != Protocol::NeverPublishes {
            self.rig.storage.set_running(vcpu, Some(core as u32));
        }
        self.remap(vcpu, Some(core), false);
        self.enter(core, vcpu);
    }

    fn enter(&mut self, core: usize, vcpu: usize) {
        let mut vmcb = self.rig.vmcb(vcpu);
        vmcb.set64(field::RFLAGS, 1 << 9);
        self.rig.try_enter(core, vmcb).expect("a VMCB without fault");
    }

    /// The guest goes on: takes what is pending, or sends, changes its priority, or leaves.
    fn guest(&mut self, core: usize, vcpu: usize) {
        let outcome = self.rig.machine.cores[core].boundary(true, false);
        if let Outcome::Delivered(vector) = outcome {
            let was_sent = std::mem::take(&mut self.outstanding[vcpu][usize::from(vector)]);
            assert!(was_sent, "vCPU {vcpu} took {vector:#x}, which nobody sent");
            self.taken += 1;
            return self.rig.machine.cores[core].begin(GuestOp::Wrmsr { msr: 0x80b, value: 0 });
        }
        assert_eq!(outcome, Outcome::Nothing);
        match self.pick(10) {
            0..6 if self.sends => self.send(core, vcpu),
            6 if self.sends => {
                let value = self.pick(16) as u64;
                self.rig.machine.cores[core].begin(GuestOp::WriteCr8 { value });
            }
            7 if self.sends => self.start_leaving(core, vcpu, false),
            _ if self.rig.machine.cores[core].v_tpr() != Some(0) => {
                self.rig.machine.cores[core].begin(GuestOp::WriteCr8 { value: 0 });
            }
            _ => self.start_leaving(core, vcpu, true),
        }
    }

    fn send(&mut self, core: usize, vcpu: usize) {
        let (target, vector) = (self.pick(VCPUS), FIRST_IPI + vcpu);
        let broadcast = self.pick(8) == 0;
        let others = (0..VCPUS).filter(|other| *other != vcpu);
        let targets = if broadcast { others.collect() } else { vec![target] };
        if targets.iter().any(|target| self.outstanding[*target][vector]) {
            return;
        }
        self.sent += targets.len();
        targets.iter().for_each(|target| self.outstanding[*target][vector] = true);
        let command = if broadcast { 3 << 18 } else { 0 } | vector as u64;
        let value = (target as u64) << 32 | command;
        self.rig.machine.cores[core].begin(GuestOp::Wrmsr { msr: 0x830, value });
    }

    fn device(&mut self) {
        let vcpu = self.pick(VCPUS);
        if self.sends && !self.outstanding[vcpu][DEVICE] {
            self.outstanding[vcpu][DEVICE] = true;
            self.sent += 1;
            self.rig.machine.iommu.interrupt(0, Storage::REMAPPING + 16 * vcpu as u64);
        }
    }

    /// An exit: an IPI found a target that does not run, which is woken.
    fn handle_exit(&mut self, core: usize) {
        let Core::Guest(vcpu) = self.cores[core] else { return };
        let vmcb = self.rig.machine.cores[core].take_vmcb().expect("an exit leaves a VMCB");
        assert_eq!(vmcb.get64(field::EXIT_CODE), code::INCOMPLETE_IPI);
        assert_eq!(vmcb.get64(field::EXIT_INFO_2) >> 32, 1);
        let icr = vmcb.get64(field::EXIT_INFO_1);
        if self.protocol != Protocol::IgnoresSleepers {
            match icr >> 18 & 3 {
                0 => self.wake((icr >> 32) as usize),
                _ => (0..VCPUS).for_each(|target| self.wake(target)),
            }
        }
        self.enter(core, vcpu);
    }

    fn wake(&mut self, vcpu: usize) {
        self.vcpus[vcpu] = match self.vcpus[vcpu] {
            Vcpu::Blocked => Vcpu::Runnable,
            Vcpu::FallingAsleep if self.protocol != Protocol::ForgetsWakes => Vcpu::Woken,
            other => other,
        };
    }

    /// Reads one entry of the log, if there is one.
    fn read_log(&mut self) -> bool {
        let tail = self.rig.machine.iommu.log.read(register::LOG_TAIL);
        if self.log_head == tail {
            return false;
        }
        let entry = self.rig.storage.log(self.log_head as usize / 8);
        self.log_head = (self.log_head + 8) % 4096;
        self.rig.machine.iommu.log.write(register::LOG_HEAD, self.log_head);
        if self.protocol != Protocol::IgnoresLog {
            self.wake(entry as u32 as usize);
        }
        true
    }

    fn start_leaving(&mut self, core: usize, vcpu: usize, blocks: bool) {
        self.rig.leave(core);
        if blocks {
            self.vcpus[vcpu] = Vcpu::FallingAsleep;
        }
        self.cores[core] = Core::Leaving { vcpu, step: 0, blocks, was_empty: false };
    }

    /// One step of taking a vCPU off its core: the IOMMU's entry, the table's entry, and the look at IRR.
    fn leave(&mut self, core: usize) {
        let Core::Leaving { vcpu, step, blocks, mut was_empty } = self.cores[core] else { return };
        let is_empty = self.rig.storage.vcpu(vcpu).irr().is_empty();
        let check = match self.protocol {
            Protocol::ChecksTooEarly => 0,
            _ => 3,
        };
        if step == check {
            was_empty = is_empty || self.protocol == Protocol::NeverChecks;
        }
        match step {
            1 => self.remap(vcpu, None, blocks),
            2 => self.rig.storage.set_running(vcpu, None),
            4 => {
                let sleeps = self.vcpus[vcpu] == Vcpu::FallingAsleep && was_empty;
                self.vcpus[vcpu] = if sleeps { Vcpu::Blocked } else { Vcpu::Runnable };
                self.cores[core] = Core::Host;
                return;
            }
            _ => {}
        }
        self.cores[core] = Core::Leaving { vcpu, step: step + 1, blocks, was_empty };
    }

    /// Writes a vCPU's interrupt-remapping entry: the core it runs on, or whether the log is to be told.
    fn remap(&mut self, vcpu: usize, core: Option<usize>, logs: bool) {
        let running = core.map_or(0, |core| 1 << 6 | (core as u64) << 8);
        let low = (vcpu as u64) << 32 | 1 << 7 | 1 | running | u64::from(logs) << 2;
        let high = DEVICE as u64 | Storage::page_address(vcpu);
        self.rig.storage.set_remapping(vcpu, low, high);
    }

    fn pick(&mut self, bound: usize) -> usize {
        self.rig.machine.schedule.pick(bound)
    }
}

/// The first seed whose storm leaves a vCPU asleep with a request.
fn losing_seed(protocol: Protocol, knobs: Knobs, seeds: u64) -> Option<u64> {
    let loses = |seed: &u64| Storm::new(&Storage::new(VCPUS), protocol, knobs, *seed).lost() != 0;
    (0..seeds).find(loses)
}

#[test]
fn nothing_is_lost_under_any_reading() {
    for Reading { name, knobs, .. } in Knobs::readings() {
        assert_eq!(losing_seed(Protocol::Right, knobs, 3), None, "{name}");
    }
}

#[test]
fn nothing_is_lost() {
    for late_doorbells in [false, true] {
        let knobs = Knobs { late_doorbells, ..Knobs::default() };
        assert_eq!(
            losing_seed(Protocol::Right, knobs, SEEDS),
            None,
            "late doorbells: {late_doorbells}"
        );
    }
}

#[test]
fn the_erratum_loses_interrupts_and_its_work_around_does_not() {
    let knobs = Knobs { stale_is_running: true, late_doorbells: true, ..Knobs::default() };
    assert_ne!(losing_seed(Protocol::Right, knobs, SEEDS), None);
    assert_eq!(losing_seed(Protocol::NeverPublishes, knobs, SEEDS), None);
}

#[test]
fn each_step_of_the_host_is_needed() {
    for protocol in [
        Protocol::ChecksTooEarly,
        Protocol::NeverChecks,
        Protocol::IgnoresSleepers,
        Protocol::ForgetsWakes,
        Protocol::IgnoresLog,
    ] {
        let knobs = Knobs { late_doorbells: true, ..Knobs::default() };
        assert_ne!(losing_seed(protocol, knobs, SEEDS), None, "{protocol:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_storm() {
    let run = |seed| {
        let storage = Storage::new(VCPUS);
        let mut storm = Storm::new(&storage, Protocol::Right, Knobs::default(), seed);
        (0..STEPS).for_each(|_| storm.step());
        (storm.sent, storm.taken, storm.vcpus)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
