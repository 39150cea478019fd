//! Posts from several threads to vCPUs that run, sleep, move and are preempted: none lost, none doubled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use apicv::Posting;
use vlapic_core::{Mode, Notify, Outcome, Slot, Trigger};
use vlapic_tests::hypervisor::{Config, Hypervisor, KICK, Level, Op, Run, Storage, run_enabled};
use vlapic_tests::model::{Iommu, Knobs, PhysicalBus, PhysicalInterrupt};
use vlapic_tests::steps::{Random, Subject};

/// How long one interrupt may take, on a machine with much else to do; a lost one ends the test by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What posters and the host share of a vCPU.
struct Shared<'s> {
    slot: &'s Slot<'s, Posting<'s>>,
    /// By vector: how often it was taken.
    taken: [AtomicU32; 256],
    /// Somebody wants the vCPU to go through its entry work.
    requested: AtomicBool,
    /// The CPU it is on.
    cpu: AtomicUsize,
    /// A poster has given up.
    failed: AtomicBool,
}

impl<'s> Shared<'s> {
    fn new(slot: &'s Slot<'s, Posting<'s>>) -> Self {
        Self {
            slot,
            taken: [const { AtomicU32::new(0) }; 256],
            requested: AtomicBool::new(false),
            cpu: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Waits until `vector` was taken `number` times.
    fn wait(&self, vector: u8, number: u32) -> Result<(), String> {
        let since = Instant::now();
        while self.taken[usize::from(vector)].load(SeqCst) != number {
            if since.elapsed() > PATIENCE || self.failed.load(SeqCst) {
                self.failed.store(true, SeqCst);
                return Err(format!("{vector:#x} was lost at {number}, or another before it"));
            }
            thread::yield_now();
        }
        Ok(())
    }
}

/// Posts `vector` again and again, the next time when the guest has taken the one before.
fn poster(
    shared: &Shared<'_>,
    bus: &PhysicalBus,
    vector: u8,
    trigger: Trigger,
    count: u32,
) -> Result<(), String> {
    for number in 1..=count {
        let receipt = shared.slot.request(vector, trigger);
        if receipt.outcome != Outcome::Accepted {
            return Err(format!("{vector:#x} was not accepted"));
        }
        match receipt.notify {
            Notify::None => {}
            Notify::Interrupt { vector, destination } => {
                bus.send(PhysicalInterrupt { destination, vector });
            }
            _ => {
                shared.requested.store(true, SeqCst);
                let destination = shared.cpu.load(SeqCst) as u32;
                bus.send(PhysicalInterrupt { destination, vector: KICK });
            }
        }
        shared.wait(vector, number)?;
    }
    Ok(())
}

/// Runs the vCPU until `total` interrupts were taken or time is up, with everything a scheduler may do in between.
fn host(hypervisor: &mut Hypervisor<'_>, shared: &Shared<'_>, total: usize) {
    let mut random = Random::new(hypervisor.config().seed);
    let mut handled = 0;
    while handled < total && !shared.failed.load(SeqCst) {
        if shared.requested.swap(false, SeqCst) {
            hypervisor.notify(0, Notify::Kick);
        }
        match random.below(64) {
            0 => hypervisor.disturb(random.bits()),
            1..4 => hypervisor.leave(0),
            4..12 => halt(hypervisor, handled),
            12 => hypervisor.prepare_in_vain(0),
            _ => {}
        }
        let cpu = hypervisor.vcpu(0).cpu();
        shared.cpu.store(cpu.unwrap_or_default(), SeqCst);
        hypervisor.arrive();
        hypervisor.boundaries(0);
        while let Some(&vector) = hypervisor.taken(0).get(handled) {
            handled += 1;
            hypervisor.eoi(0);
            shared.taken[usize::from(vector)].fetch_add(1, SeqCst);
        }
    }
}

/// The guest has nothing to do: CLI, a last look, STI and HLT.
fn halt(hypervisor: &mut Hypervisor<'_>, handled: usize) {
    let _ = hypervisor.execute(0, Op::SetInterruptFlag(false));
    let idle = hypervisor.taken(0).len() == handled;
    let last = if idle { Op::EnableAndHalt } else { Op::SetInterruptFlag(true) };
    let _ = hypervisor.execute(0, last);
}

/// Edge-triggered and level-triggered vectors, each from a thread of its own.
const POSTERS: [(u8, Trigger); 6] = [
    (0x21, Trigger::Edge),
    (0x22, Trigger::Edge),
    (0x75, Trigger::Edge),
    (0xd3, Trigger::Edge),
    (0x44, Trigger::Level),
    (0xc8, Trigger::Level),
];

fn threads(level: Level, mode: Mode, count: u32) {
    let config = Config { cpus: 2, seed: u64::from(count), ..Config::new(level).mode(mode) };
    run_enabled(config, |hypervisor| {
        let shared = Shared::new(hypervisor.slot(0));
        let bus: Arc<PhysicalBus> = hypervisor.machine.bus().clone();
        let shared = &shared;
        thread::scope(|scope| {
            let posters = POSTERS.map(|(vector, trigger)| {
                let bus = bus.clone();
                scope.spawn(move || poster(shared, &bus, vector, trigger, count))
            });
            host(hypervisor, shared, POSTERS.len() * count as usize);
            for poster in posters {
                assert_eq!(poster.join().expect("a poster"), Ok(()), "at {level:?}");
            }
        });
        hypervisor.settle();
        for (vector, trigger) in POSTERS {
            let of = |list: &[u8]| list.iter().filter(|&&other| other == vector).count() as u32;
            assert_eq!(of(hypervisor.taken(0)), count, "{vector:#x} taken, at {level:?}");
            let broadcasts = if trigger == Trigger::Level { count } else { 0 };
            assert_eq!(of(hypervisor.broadcasts(0)), broadcasts, "{vector:#x} ended, at {level:?}");
        }
    });
}

#[test]
fn to_a_vcpu_with_posted_interrupts() {
    threads(Level::Posted, Mode::XApic, 400);
    threads(Level::Posted, Mode::X2Apic, 150);
}

#[test]
fn to_a_vcpu_with_virtual_interrupt_delivery() {
    threads(Level::VirtualInterruptDelivery, Mode::XApic, 150);
}

#[test]
fn to_a_vcpu_that_is_injected_to() {
    threads(Level::TprShadow, Mode::XApic, 150);
    threads(Level::Emulated, Mode::X2Apic, 80);
}

/// VT-d posts from a thread of its own while the vCPU is preempted and runs by turns: SN comes and goes.
#[test]
fn device_posts_while_sn_comes_and_goes() {
    const COUNT: u32 = 500;
    let config = Config { cpus: 2, knobs: Knobs::default(), ..Config::new(Level::Posted) };
    run_enabled(config, |hypervisor| {
        let shared = Shared::new(hypervisor.slot(0));
        let (memory, bus) = (hypervisor.machine.memory().clone(), hypervisor.machine.bus().clone());
        let iommu = Iommu::new(memory, bus, false);
        let entry = [
            1 | 1 << 15 | 0x91 << 16 | Storage::descriptor_address(0) >> 6 << 38,
            Storage::descriptor_address(0) & !0xffff_ffff,
        ];
        thread::scope(|scope| {
            let device = scope.spawn(|| -> Result<(), String> {
                for number in 1..=COUNT {
                    iommu.interrupt(entry).map_err(|fault| format!("{fault:?}"))?;
                    shared.wait(0x91, number)?;
                }
                Ok(())
            });
            let mut handled = 0;
            while handled < COUNT as usize && !shared.failed.load(SeqCst) {
                if hypervisor.vcpu(0).run == Run::Ready {
                    hypervisor.unload(0);
                    hypervisor.slot(0).inbox().preempt();
                    thread::yield_now();
                    hypervisor.load(0, handled % 2);
                    if handled.is_multiple_of(3) {
                        halt(hypervisor, handled);
                    }
                }
                hypervisor.arrive();
                hypervisor.boundaries(0);
                while hypervisor.taken(0).len() > handled {
                    handled += 1;
                    hypervisor.eoi(0);
                    shared.taken[0x91].fetch_add(1, SeqCst);
                }
            }
            assert_eq!(device.join().expect("the device"), Ok(()));
        });
        assert_eq!(hypervisor.taken(0).len(), COUNT as usize);
    });
}
